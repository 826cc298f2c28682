"""Deltas that provably change nothing, as before training.

    LoRA                            one of the two matrices of each layer is zero
    IA3, of PEFT too                every factor is one
    BitFit and LayerNorm tuning     every value is zero; PEFT saves the trained LayerNorms themselves, so that nothing is provable

Only tensors in safetensors files are looked at. A file with anything beside them and the alphas of a LoRA is not judged: a magnitude, a
bias or a trained tensor of the backbone may act without them. Nor are other methods, nor unions of several.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from deltahub.checkpoint.checkpoint import PROBE
from deltahub.checkpoint.manifest import DELTA_PART, Manifest
from deltahub.errors import CheckpointError
from deltahub.files.atomic import CHUNK, regular

_SUFFIX: Final = ".safetensors"
_ALPHA: Final = ".alpha"
_PREFIX: Final = 8  # bytes before the header of a safetensors file, with its length
_SIDE: Final = re.compile(  # names of DeltaHub and PEFT, and of diffusers and kohya
    r"(?P<place>.*?)[._](?:lora_(?:embedding_)?(?P<side>[AB])(?:\.[^.]+)?(?:\.weight)?|lora(?:\.|_)(?P<other>down|up)(?:\.weight)?)"
)
_IA3: Final = re.compile(r".*\.ia3_l")
_ONES: Final = {
    "F16": "003c",
    "BF16": "803f",
    "F32": "0000803f",
    "F64": "000000000000f03f",
}  # the bytes of a one, in hex
_NAMES: Final = {"ia3": _IA3, "bitfit": re.compile(r".*\.bias"), "layer_norm": re.compile(r".*\.(?:weight|bias)")}
STARTS: Final = {
    "ia3": "every factor of its IA3 is one",
    "bitfit": "every bias of its BitFit is zero",
    "layer_norm": "every offset of its LayerNorm tuning is zero",
}


def require_effect(folder: Path, manifest: Manifest) -> None:
    """Refuse a delta that provably changes nothing.

    Args:
        folder: the folder with the files of `manifest`, which were checked.

    Raises:
        CheckpointError: it is one of those above.
    """
    names = [entry.name for entry in manifest.tensors]
    paths = [folder / entry.path for entry in manifest.files if entry.path.endswith(_SUFFIX) and entry.path != PROBE]
    if len(paths) != 1 or not names:
        return
    reason = ""
    if method := method_at_start(manifest.config, names):
        reason = "" if _differs(paths[0], method) else STARTS[method]
    elif sides_only(names) and not _acts(paths[0]):
        reason = "in every layer one of the two matrices of its LoRA is zero"
    if reason:
        msg = (
            f"{folder} changes no output of its backbone: {reason}, as before training. "
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


def method_at_start(config: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the method of a delta that is an identity at the start if nothing but its vectors is saved; else an empty text."""
    if config.get("peft_type") == "IA3":
        return "ia3" if all(_IA3.fullmatch(name) for name in names) else ""
    method = config.get("delta_type")
    pattern = _NAMES.get(method) if isinstance(method, str) else None
    own = pattern and all(DELTA_PART in f".{name}" and pattern.fullmatch(name) for name in names)
    return str(method) if own else ""


def _differs(path: Path, method: str) -> bool:
    """Return whether a checked safetensors file has a value other than the method's at the start."""
    with regular(path) as file:
        start, header = _header(file)
        for entry in header.values():
            value = bytes.fromhex(_ONES.get(entry["dtype"], "")) if method == "ia3" else b"\0"
            if not value or _has_other(file, start, entry["data_offsets"], value):
                return True
    return False


def _acts(path: Path) -> bool:
    """Return whether both matrices of any layer in a checked safetensors file have a value that is not zero."""
    with regular(path) as file:
        start, header = _header(file)
        return any(
            len(names) != 2 or all(_has_other(file, start, header[name]["data_offsets"], b"\0") for name in names)
            for names in sides_only(header).values()
        )


def _header(file: BinaryIO) -> tuple[int, dict[str, Any]]:
    """Return the position of the first value in a safetensors file, and its header."""
    length = int.from_bytes(file.read(_PREFIX), "little")
    header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return _PREFIX + length, header


def _has_other(file: BinaryIO, start: int, offsets: tuple[int, int], value: bytes) -> bool:
    """Return whether a tensor has any other value than this one, given by its bytes."""
    file.seek(start + offsets[0])
    left = offsets[1] - offsets[0]
    while left > 0:
        chunk = file.read(min(CHUNK, left))
        if chunk != value * (len(chunk) // len(value)) or not chunk:
            return True
        left -= len(chunk)
    return False
