"""Deltas that provably change nothing, as before training.

    updates of weights              a factor of each update is zero: one of the two matrices of a LoRA, the vector of a VeRA, ...
    bottleneck adapters             weight and bias of each upper layer are zero
    IA3, of PEFT too                every factor is one
    BitFit and LayerNorm tuning     every value is zero; PEFT saves the trained LayerNorms themselves, so that nothing is provable

A delta with any other tensor beside them is not judged: a magnitude (DoRA), a bias or a trained tensor of the backbone may act without them. Nor are
methods that start with another value than the identity, and in files anything but safetensors.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from deltahub.checkpoint.checkpoint import PROBE
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import CheckpointError
from deltahub.files.atomic import CHUNK, regular

_SUFFIX: Final = ".safetensors"
_PREFIX: Final = 8  # bytes before the header of a safetensors file, with its length
# Factors of updates, by the names of DeltaHub and PEFT, of AdapterHub, and of diffusers, kohya and LyCORIS. One of them with nothing but zeros
# makes the update of its place zero: B A, B diag(E) A, w1 * w2, diag(b) B diag(d) A, a kernel, a rotation's generator.
_FACTOR: Final = re.compile(
    r"(?P<place>.*?)[._](?:"
    r"(?P<lora>lora)(?:_(?:embedding_)?[ABE]|(?:_linear_layer)?[._](?:down|up|mid))"
    r"|(?P<hada>hada)_[wt][12](?:_[ab])?|(?P<lokr>lokr)_[wt][12](?:_[ab])?|(?P<hira>hira)_[AB]|(?P<vera>vera)_lambda_[bd]"
    r"|(?P<randlora>randlora)_(?:lambda|gamma)|(?P<single>c3a_kernel|oft_R|fourierft_spectrum|waveft_spectrum|miss_block|shira_weight)"
    r")(?P<label>\.(?!weight$)[^.]+)?(?:\.weight)?"
)
_BESIDE: Final = re.compile(r".*(?:\.alpha|[._](?:vera|randlora)_[AB](?:\.[^.]+)?|shira_indices(?:\.[^.]+)?)")
_IA3: Final = re.compile(r".*\.ia3_l(?:\.[^.]+)?")
_UPPER: Final = re.compile(r".*\.deltas\.(?:.*\.)?up_proj\.(?:weight|bias)")
_LOWER: Final = re.compile(r".*\.deltas\.(?:.*\.)?down_proj\.(?:weight|bias)")
_NONE: Final = re.compile(r"(?!)")
# Methods of which every tensor has a certain value at the start: the names of these tensors, of others that may have any value, the value, a reason.
_VALUES: Final[Mapping[str, tuple[re.Pattern[str], re.Pattern[str], int, str]]] = {
    "ia3": (_IA3, _NONE, 1, "every factor of its IA3 is one"),
    "bitfit": (re.compile(r".*\.deltas\.(?:.*\.)?bias"), _NONE, 0, "every bias of its BitFit is zero"),
    "layer_norm": (
        re.compile(r".*\.deltas\.(?:.*\.)?(?:weight|bias)"),
        _NONE,
        0,
        "every offset of its LayerNorm tuning is zero",
    ),
    **dict.fromkeys(
        ("adapter", "parallel_adapter"), (_UPPER, _LOWER, 0, "the upper layer of each of its adapters is zero")
    ),
}
_ONES: Final = {
    "F16": "003c",
    "BF16": "803f",
    "F32": "0000803f",
    "F64": "000000000000f03f",
}  # the bytes of a one, in hex
IsAll = Callable[[str, int], bool]  # whether all values of a tensor are 0, or 1


def require_effect(folder: Path, manifest: Manifest) -> None:
    """Refuse a delta that provably changes nothing.

    Args:
        folder: the folder with the files of `manifest`, which were checked.

    Raises:
        CheckpointError: it is one of those above.
    """
    paths = [folder / entry.path for entry in manifest.files if entry.path.endswith(_SUFFIX) and entry.path != PROBE]
    if len(paths) != 1 or not manifest.tensors:
        return
    with regular(paths[0]) as file:
        start, header = _header(file)

        def is_all(name: str, value: int) -> bool:
            entry = header[name]
            data = bytes.fromhex(_ONES.get(entry["dtype"], "")) if value else b"\0"
            return bool(data) and not _has_other(file, start, entry["data_offsets"], data)

        reason = why_identity(manifest.config, [entry.name for entry in manifest.tensors], is_all)
    if reason:
        msg = (
            f"{folder} changes no output of its backbone: {reason}, as before training. "
            "Save it after training, or insist with --allow-untrained (allow_untrained=True)."
        )
        raise CheckpointError(msg)


def why_identity(config: Mapping[str, Any], names: Iterable[str], is_all: IsAll) -> str:
    """Return a clause on why a delta changes nothing; empty if that is not provable.

    Args:
        config: its config, or that of its manifest.
        names: the names of its tensors.
        is_all: returns whether all values of a tensor are 0, or 1.
    """
    names = list(names)
    method = _method(config)
    if method in _VALUES:
        judged, others, value, reason = _VALUES[method]
        own = [name for name in names if judged.fullmatch(name)]
        whole = own and len(own) + sum(bool(others.fullmatch(name)) for name in names) == len(names)
        return reason if whole and all(is_all(name, value) for name in own) else ""
    options = config.get("options")
    if isinstance(options, Mapping) and options.get("composition_mode") == "scale":  # AdapterHub's IA3 multiplies
        return ""
    factors = _factors(names)
    if not factors or not all(any(is_all(name, 0) for name in own) for own in factors.values()):
        return ""
    if all(kind == "lora" for _, kind, _ in factors):
        return "in every layer one of the two matrices of its LoRA is zero"
    return "in every layer a factor of its update is zero"


def _method(config: Mapping[str, Any]) -> str:
    """Return the method of a delta that is judged by single values; else an empty text."""
    if config.get("peft_type") == "IA3":
        return "ia3"
    method = config.get("delta_type")
    return method if isinstance(method, str) else ""


def _factors(names: Iterable[str]) -> dict[tuple[str, str, str], list[str]]:
    """Return the names of factors by their place, method and label; empty if there is any other tensor, or none."""
    factors: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for name in names:
        if match := _FACTOR.fullmatch(name):
            kind = next(kind for kind, value in match.groupdict().items() if value and kind not in ("place", "label"))
            factors[match["place"], kind, match["label"] or ""].append(name)
        elif not _BESIDE.fullmatch(name):
            return {}
    return factors


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
