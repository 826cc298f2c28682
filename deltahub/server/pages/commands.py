"""Commands that use a delta, ready to be copied; only those that apply to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deltahub.naming import backbone_name
from deltahub.registry.registry import Found

_PEFT: Final = "adapter_config.json"  # the file by which PEFT knows its own
_WITH_PEFT: Final = ("lora", "ia3", "prefix", "soft_prompt")
_WITH_VLLM: Final = "lora"


@dataclass(frozen=True)
class Command:
    """Something to copy.

    Attributes:
        title: what it is for.
        texts: what to copy, one after the other.
    """

    title: str
    texts: tuple[str, ...]


def commands(found: Found, hub: str) -> list[Command]:
    """What can be done with a version.

    Args:
        hub: the hub's address, e.g. ``"https://hub.acme.org"``.
    """
    name, version = found.document.name, found.version
    folder = f"./{name.partition('/')[2]}"
    backbone = backbone_name(found.manifest.config) or "BACKBONE"
    download = f"HF_ENDPOINT={hub} hf download {name} --revision {version} --local-dir {folder}"
    if any(entry.path == _PEFT for entry in found.manifest.files):
        return [
            Command(
                "PEFT",
                (f"export HF_ENDPOINT={hub}", f'PeftModel.from_pretrained(model, "{name}", revision="{version}")'),
            ),
            Command("vLLM", (download, _serve(backbone, folder))),
        ]
    method = found.manifest.config.get("delta_type")
    if found.manifest.kind != "delta" or not method:
        return [Command("Files", (download,))]
    pull = f"deltahub pull team:{name}@{version}"
    offered = [
        Command("DeltaHub, once", (f"deltahub source add team {hub}",)),
        Command(
            "DeltaHub", (f"{pull} --to {folder}", f'AutoDeltaModel.from_finetuned("team:{name}@{version}", model)')
        ),
    ]
    if method in _WITH_PEFT:
        load = f'PeftModel.from_pretrained(model, "{folder}-peft")'
        offered.append(Command("PEFT", (f"{pull} --format peft --to {folder}-peft", load)))
    if method == _WITH_VLLM:
        offered.append(Command("vLLM, after the pull for PEFT", (_serve(backbone, f"{folder}-peft"),)))
    return offered


def _serve(backbone: str, folder: str) -> str:
    return f"vllm serve {backbone} --enable-lora --lora-modules {folder[2:]}={folder}"
