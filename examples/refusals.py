"""Three loads that must be refused, each with one clear sentence."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from deltahub import AutoDeltaModel
from deltahub.errors import DeltaHubError


def show_refusals(backbone: nn.Module, checkpoint: Path, work: Path) -> None:
    """Try a backbone with one changed tensor, a checkpoint with one flipped bit, and a pickle.

    Args:
        backbone: the right one, without a delta.
        checkpoint: a saved delta.
        work: a folder to write to.
    """
    _refused("another backbone (one value of one tensor changed)", lambda: _other_backbone(backbone, checkpoint))
    _refused("a corrupted file (one bit flipped)", lambda: _corrupted(backbone, checkpoint, work / "corrupted"))
    _refused("a pickle", lambda: _pickle(backbone, work / "pickle"))


def _refused(what: str, attempt: Callable[[], None]) -> None:
    out = Console(highlight=False)
    try:
        attempt()
    except DeltaHubError as error:
        out.print(f"\n[bold]Refused: {what}[/bold]\n  {type(error).__name__}: {error}")
        return
    msg = f"{what} was not refused"
    raise AssertionError(msg)


def _other_backbone(backbone: nn.Module, checkpoint: Path) -> None:
    other = copy.deepcopy(backbone)
    with torch.no_grad():
        other.get_parameter("bert.encoder.layer.3.output.dense.weight")[0, 0] += 1e-3
    AutoDeltaModel.from_finetuned(checkpoint, backbone_model=other)


def _corrupted(backbone: nn.Module, checkpoint: Path, folder: Path) -> None:
    shutil.copytree(checkpoint, folder)
    weights = folder / "delta.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)


def _pickle(backbone: nn.Module, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"delta_type": "lora", "lora_r": 8}))
    torch.save(
        {"bert.encoder.layer.0.attention.self.query.lora.lora_A": torch.zeros(8, 384)}, folder / "pytorch_model.bin"
    )
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)
