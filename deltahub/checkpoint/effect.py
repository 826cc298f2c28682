"""Deltas that provably change nothing: LoRAs in which one of the two matrices of each layer is zero, as before training.

Only tensors in safetensors files are looked at. A file with anything beside such matrices and their alphas is not judged: a magnitude, a
bias or a trained tensor of the backbone may act without them.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import CheckpointError
from deltahub.files.atomic import CHUNK, regular

_SUFFIX: Final = ".safetensors"
_ALPHA: Final = ".alpha"
_PREFIX: Final = 8  # bytes before the header of a safetensors file, with its length
_SIDE: Final = re.compile(  # names of DeltaHub and PEFT, and of diffusers and kohya
    r"(?P<place>.*?)[._](?:lora_(?:embedding_)?(?P<side>[AB])(?:\.[^.]+)?(?:\.weight)?|lora(?:\.|_)(?P<other>down|up)(?:\.weight)?)"
)


def require_effect(folder: Path, manifest: Manifest) -> None:
    """Refuse a delta that provably changes nothing.

    Args:
        folder: the folder with the files of `manifest`, which were checked.

    Raises:
        CheckpointError: in each layer one of the two matrices of the LoRA is zero.
    """
    if not sides_only(entry.name for entry in manifest.tensors):
        return
    paths = [folder / entry.path for entry in manifest.files if entry.path.endswith(_SUFFIX)]
    if len(paths) == 1 and not _acts(paths[0]):
        msg = (
            f"{folder} changes no output of its backbone: in every layer one of the two matrices of its LoRA is zero, as before training. "
            "Save it after training, or insist with --allow-untrained (allow_untrained=True)."
        )
        raise CheckpointError(msg)


def sides_only(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of a LoRA's matrices by their places; empty if there is any other tensor, or none."""
    sides: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if match := _SIDE.fullmatch(name):
            sides[match["place"]].append(name)
        elif not name.endswith(_ALPHA):
            return {}
    return sides


def _acts(path: Path) -> bool:
    """Return whether both matrices of any layer in a checked safetensors file have a value that is not zero."""
    with regular(path) as file:
        length = int.from_bytes(file.read(_PREFIX), "little")
        header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = _PREFIX + length
        return any(
            len(names) != 2 or all(_has_value(file, start, header[name]["data_offsets"]) for name in names)
            for names in sides_only(header).values()
        )


def _has_value(file: BinaryIO, start: int, offsets: tuple[int, int]) -> bool:
    file.seek(start + offsets[0])
    left = offsets[1] - offsets[0]
    while left > 0:
        chunk = file.read(min(CHUNK, left))
        if not chunk or chunk.count(0) != len(chunk):
            return True
        left -= len(chunk)
    return False
