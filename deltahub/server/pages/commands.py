"""Commands for using a delta, ready to copy; only those that apply to it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Final

from deltahub.checkpoint.default_name import backbone_name
from deltahub.checkpoint.manifest import Manifest
from deltahub.registry.registry import Found

_PEFT: Final = "adapter_config.json"  # the file that identifies a PEFT adapter
_WITH_PEFT: Final = ("lora", "ia3", "layer_norm", "soft_prompt")
_RANKS: Final = (16, 32, 64, 128, 256, 320, 512)  # allowed by vLLM, whose default --max-lora-rank is the first


@dataclass(frozen=True)
class Command:
    """A command to copy.

    Attributes:
        title: its purpose.
        texts: the lines to copy, in order.
    """

    title: str
    texts: tuple[str, ...]


def commands(delta: Found, hub: str) -> list[Command]:
    """Return the commands that apply to a version.

    Args:
        hub: the hub's URL, e.g. ``"https://hub.acme.org"``.
    """
    name, version = delta.document.name, delta.version
    folder = f"./{name.name}"
    # Quoted against shell injection: the name comes from a config written by another user.
    backbone = shlex.quote(" ".join(backbone_name(delta.manifest.config).split()) or "BACKBONE")
    download = f"HF_ENDPOINT={hub} hf download {name} --revision {version} --local-dir {folder}"
    if any(entry.path == _PEFT for entry in delta.manifest.files):
        return [
            Command(
                "PEFT",
                (f"export HF_ENDPOINT={hub}", f'PeftModel.from_pretrained(model, "{name}", revision="{version}")'),
            ),
            Command("vLLM", (download, _serve(backbone, folder))),
        ]
    method = delta.manifest.config.get("delta_type")
    if delta.manifest.kind != "delta" or not method:
        return [Command("Files", (download,))]
    pull = f"deltahub pull team:{name}@{version}"
    offers = [
        Command("DeltaHub, first time only", (f"deltahub source add team {hub}",)),
        Command(
            "DeltaHub", (f"{pull} --to {folder}", f'AutoDeltaModel.from_finetuned("team:{name}@{version}", model)')
        ),
    ]
    if method in _WITH_PEFT:
        # PEFT needs the complete weights, of which a layer_norm delta holds only a part.
        values = f" --backbone {backbone}" if method == "layer_norm" else ""
        load = f'PeftModel.from_pretrained(model, "{folder}-peft")'
        offers.append(Command("PEFT", (f"{pull} --format peft --to {folder}-peft{values}", load)))
    rank = _vllm_rank(delta.manifest)
    if rank:
        serve = _serve(backbone, f"{folder}-peft", rank)
        offers.append(Command("vLLM, after pulling for PEFT", (serve,)))
    return offers


def _vllm_rank(manifest: Manifest) -> int | None:
    """Return the smallest --max-lora-rank that fits the delta; None if vLLM, which supports only plain LoRA, cannot serve it."""
    config, counts = manifest.config, manifest.parameters
    rank = config.get("lora_r", 8)
    patterns = config.get("rank_pattern") or config.get("alpha_pattern")  # vLLM supports a single rank and scale
    if config.get("delta_type") != "lora" or config.get("use_dora") or patterns or counts["total"] != counts["delta"]:
        return None
    return next((most for most in _RANKS if isinstance(rank, int) and rank <= most), None)


def _serve(backbone: str, folder: str, rank: int = _RANKS[0]) -> str:
    larger = f" --max-lora-rank {rank}" if rank > _RANKS[0] else ""
    return f"vllm serve {backbone} --enable-lora --lora-modules {folder[2:]}={folder}{larger}"
