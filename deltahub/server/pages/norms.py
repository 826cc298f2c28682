"""Norm of the change per module, computed from a delta's tensors without torch.

A low-rank pair counts as the update of the weight, ``||s B A||`` (Frobenius), with the strength of the delta; any other module as the
norm of all its values, and so does a pair whose update depends on other tensors too (DoRA, AdaLoRA). The
product itself is avoided: ``||B A||^2 = sum((B'B) * (A A'))`` needs only small matrices; it is computed only where it is even
smaller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from deltahub.checkpoint.manifest import DELTA_PART
from deltahub.errors import CheckpointError

UPDATE: Final = "update to the weight"
VALUES: Final = "values"
_PLAIN: Final = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}
_LOW_RANK: Final = re.compile(r"(?P<before>.*?)\.?lora_(?P<side>[AB])(?:\.[^.]+)*")  # PEFT appends ".weight"
_BESIDE: Final = ("lora_E", "lora_kept", "lora_magnitude_vector")  # tensors that change what B A does
_MATRIX: Final = 2  # dimensions


@dataclass(frozen=True)
class ModuleNorm:
    """The norm of a module.

    Attributes:
        address: of the module in the backbone, e.g. ``"encoder.layer.3.attention.self.query"``.
        norm: not negative; may be infinite or NaN if a value is.
        measure: `UPDATE` or `VALUES`.
        parameters: number of values.
    """

    address: str
    norm: float
    measure: str
    parameters: int

    @property
    def block(self) -> int | None:
        """The number of the module's block; None outside blocks."""
        number = next((part for part in self.address.split(".") if part.isdecimal() and len(part) < 6), None)
        return None if number is None else int(number)

    @property
    def series(self) -> str:
        """The address with ``*`` for the block number: shared by modules that are the same in every block."""
        parts = self.address.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal() and len(part) < 6), None)
        return self.address if at is None else ".".join((*parts[:at], "*", *parts[at + 1 :]))


def module_norms(data: bytes, config: Mapping[str, Any]) -> tuple[ModuleNorm, ...]:
    """Compute the norms of a delta's modules, sorted by address with numbers in numeric order.

    Args:
        data: a safetensors file.
        config: of the delta, for the scale of a low-rank update.

    Raises:
        CheckpointError: the data is not a safetensors file, or has an unsupported dtype.
    """
    from safetensors import SafetensorError, deserialize  # imported lazily: most pages show no plot

    try:
        tensors = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        msg = f"The weights are not a safetensors file ({error})."
        raise CheckpointError(msg) from error
    modules: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors:
        module, parameter = split_name(name)
        modules.setdefault(module, {})[parameter] = _array(name, tensor)
    norms = (_norm(module, parts, scale_of(config, module)) for module, parts in modules.items())
    return tuple(sorted(norms, key=lambda norm: _natural(norm.address)))


def split_name(name: str) -> tuple[str, str]:
    """Split a tensor name into its module and the rest."""
    module, part, parameter = f".{name}".partition(DELTA_PART)
    if part:
        return module.removeprefix("."), parameter
    low_rank = _LOW_RANK.fullmatch(name)
    if low_rank:
        return low_rank["before"].removeprefix("base_model.model."), name[len(low_rank["before"]) :].removeprefix(".")
    module, _, parameter = name.rpartition(".")
    return module or name, parameter


def scale_of(config: Mapping[str, Any], module: str = "") -> float:
    """Return the factor of a module's low-rank update, with the strength of the delta; 1 if the config does not give it."""
    rank = _option(config.get("rank_pattern"), module, config.get("lora_r") or config.get("r"))
    alpha = _option(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(rank, int | float) or not isinstance(alpha, int | float) or rank <= 0:
        return 1.0
    strength = config.get("strength", 1.0)
    share = float(strength) if isinstance(strength, int | float) else 1.0
    return share * float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _option(patterns: Any, module: str, default: Any) -> Any:
    """Return the value of an option for a module: patterns are module names or suffixes; regular expressions are not run here."""
    ends = patterns if isinstance(patterns, Mapping) else {}
    return next((value for end, value in ends.items() if f".{module}".endswith(f".{end}")), default)


def _array(name: str, tensor: Mapping[str, Any]) -> Any:
    import numpy as np

    dtype = tensor["dtype"]
    if dtype == "BF16":  # the upper half of a float32
        values = (np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16).view("<f4")
    elif dtype in _PLAIN:
        values = np.frombuffer(tensor["data"], np.dtype(_PLAIN[dtype]).newbyteorder("<"))
    else:
        msg = f"The tensor {name} has dtype {dtype}, for which norms are not shown. Load the delta to inspect it."
        raise CheckpointError(msg)
    return values.reshape(tensor["shape"])


def _norm(address: str, parts: Mapping[str, Any], scale: float) -> ModuleNorm:
    parameters = sum(int(values.size) for values in parts.values())
    pairs = list(_pairs(parts))
    if pairs:
        return ModuleNorm(address, abs(scale) * math.sqrt(_sum(map(_product, pairs))), UPDATE, parameters)
    return ModuleNorm(address, math.sqrt(_sum(map(_square, parts.values()))), VALUES, parameters)


def _pairs(parts: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield (A, B) of each low-rank update, with shapes (r, n_in) and (n_out, r); none if other tensors change it too."""
    if any(mark in name for name in parts for mark in _BESIDE):
        return
    for name, down in parts.items():
        match = _LOW_RANK.fullmatch(name)
        if not match or match["side"] != "A":
            continue
        start = len(match["before"])
        up = parts.get(name[:start] + name[start:].replace("lora_A", "lora_B", 1))
        if up is not None and down.ndim == up.ndim == _MATRIX and down.shape[0] == up.shape[1]:
            yield down, up


def _product(pair: tuple[Any, Any]) -> float:
    import numpy as np

    with np.errstate(all="ignore"):  # values that are not finite give such a norm
        down, up = (values.astype(np.float64) for values in pair)
        if down.shape[0] ** 2 > up.shape[0] * down.shape[1]:  # not low rank: the update is the smaller matrix
            return _square(up @ down)
        return max(0.0, float(np.sum((up.T @ up) * (down @ down.T))))


def _square(values: Any) -> float:
    import numpy as np

    with np.errstate(all="ignore"):
        flat = values.astype(np.float64).ravel()
        return float(flat @ flat)


def _sum(squares: Iterable[float]) -> float:
    """Return the sum; NaN stays NaN, which `math.sqrt` accepts."""
    return sum(squares, 0.0)


def _natural(address: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts layer.10 after layer.9."""
    return [(0, int(part), "") if part.isdecimal() and len(part) < 19 else (1, 0, part) for part in address.split(".")]
