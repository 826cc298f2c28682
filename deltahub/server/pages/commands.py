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
        text: one or more lines.
    """

    title: str
    text: str


def commands(found: Found, hub: str) -> list[Command]:
    """What can be done with a version.

    Args:
        hub: the hub's address, e.g. ``"https://hub.acme.org"``.
    """
    name, version = found.document.name, found.version
    backbone = backbone_name(found.manifest.config) or "BACKBONE"
    method = found.manifest.config.get("delta_type")
    endpoint = f"HF_ENDPOINT={hub}"
    folder = f"./{name.partition('/')[2]}"
    files = {entry.path for entry in found.manifest.files}
    if _PEFT in files:
        load = f'PeftModel.from_pretrained(model, "{name}", revision="{version}")  # with {endpoint}'
        return [
            Command("PEFT", load),
            Command("Files", f"{endpoint} hf download {name} --revision {version} --local-dir {folder}"),
            Command("vLLM", f"vllm serve {backbone} --enable-lora --lora-modules {folder[2:]}={folder}"),
        ]
    if method is None:
        return [Command("Files", f"{endpoint} hf download {name} --revision {version} --local-dir {folder}")]
    offered = [
        Command("DeltaHub", f"{endpoint} deltahub pull hf:{name}@{version} --to {folder}"),
        Command("Python", f'delta = AutoDeltaModel.from_finetuned("hf:{name}@{version}", backbone_model=model)'),
    ]
    if method in _WITH_PEFT:
        pull = f"{endpoint} deltahub pull hf:{name}@{version} --format peft --to {folder}-peft"
        offered.append(Command("PEFT", f"{pull}\npython -c '... PeftModel.from_pretrained(model, \"{folder}-peft\")'"))
    if method == _WITH_VLLM:
        serve = f"vllm serve {backbone} --enable-lora --lora-modules {folder[2:]}={folder}-peft"
        offered.append(Command("vLLM, after the pull for PEFT", serve))
    return offered
