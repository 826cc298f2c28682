"""The comparison of a backbone with a record of the same weights in another quantisation.

The record holds hashes, and for quantised weights the settings and a few values. So it is compared in this way:

    recorded quantised, backbone dense      the weight is quantised with the recorded settings: equal parts prove it; otherwise, on
                                            another device say, its values are compared with the recorded ones
    recorded dense, backbone quantised      the dense weight is read from the files that the backbone was loaded from: its hash
                                            proves it, and the quantised one must be near it
    both quantised, in different ways       the values are compared with the recorded ones
    neither                                 the values must be equal, up to precision

Without the files, or without values in the record, a quantised weight is compared by its shape alone, which the result says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.backbone_record import Difference, Fingerprint, Leaf
from deltahub.checkpoint.quantised_weight import QuantisedWeight, split
from deltahub.engine.fingerprint import leaf_of
from deltahub.engine.modules import module_at
from deltahub.engine.quantised.record import dequantised, sampled
from deltahub.engine.quantised.requantising import requantised
from deltahub.engine.shapes import is_conv1d

OTHER: Final = "other quantisation, other weights"
_LIMITS: Final = {8: 0.03, 6: 0.1, 5: 0.15, 4: 0.25, 3: 0.45}  # relative error of a weight, by its bits
_LARGEST: Final = 0.7  # with fewer or unknown bits; of unrelated weights it is 1.4
_SAME: Final = 0.95  # share of the recorded values that quantisation on another device must give again

Source = Callable[[str], Tensor | None]


@dataclass
class Agreement:
    """The result of a comparison, by the names of tensors.

    Attributes:
        equal: the tensors that are equal, up to precision.
        proven: the quantised weights that are those of the record: they have the recorded hashes, on one side or the other.
        close: those whose values agree within the error of the quantisation.
        unknown: those of which only the shape was compared.
        differing: the tensors that differ, with the reason.
        errors: the relative error of each weight that was quantised.
    """

    equal: list[str] = field(default_factory=list)
    proven: list[str] = field(default_factory=list)
    close: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    differing: dict[str, str] = field(default_factory=dict)
    errors: list[float] = field(default_factory=list)

    @property
    def difference(self) -> Difference | None:
        """The difference if a tensor differs, else None."""
        if not self.differing:
            return None
        count = sum(map(len, (self.equal, self.proven, self.close, self.unknown, self.differing)))
        shown = ", ".join(f"{name} ({reason})" for name, reason in list(self.differing.items())[:3])
        return Difference(OTHER, f"{len(self.differing)} of {count} tensors differ after dequantisation: {shown}")

    @property
    def detail(self) -> str:
        """Describe the result, in clauses."""
        clauses = [
            (self.proven, "quantised weights are those of the record, by their hashes"),
            (self.close, "quantised weights agree with the recorded values within the error of quantisation"),
            (self.unknown, "quantised weights could be compared by their shape alone"),
            (self.equal, "tensors that are not quantised are equal, up to precision"),
        ]
        words = [f"{len(names)} {clause}" for names, clause in clauses if names]
        if self.errors:
            mean = math.sqrt(sum(error * error for error in self.errors) / len(self.errors))
            words.append(f"quantisation changes a weight by {mean:.2g} of its norm, at most {max(self.errors):.2g}")
        return "; ".join(words)


@torch.no_grad()
def compare_dequantised(
    record: Fingerprint,
    actual: Fingerprint,
    tensors: Iterable[tuple[str, Tensor]],
    backbone: nn.Module,
    source: Source,
) -> Agreement:
    """Compare a backbone with a record of another quantisation of it; names and shapes are the same.

    Args:
        actual: the fingerprint of the backbone.
        tensors: its own tensors by name, those that no delta replaces.
        backbone: its modules.
        source: reads a tensor from the files that the backbone was loaded from; None if it cannot.
    """
    recorded, names = split(record.quantised, [leaf.name for leaf in record.leaves])
    live, _ = split(actual.quantised, ())
    comparison = _Comparison(record, actual, backbone, source)
    for name, tensor in tensors:
        if name in recorded and name not in live:
            comparison.quantise(recorded[name], tensor)
        elif name in names and name not in live:
            comparison.read(name, tensor)
    for name, weight in live.items():
        if name in recorded:
            comparison.compare_quantised(recorded[name], weight)
        else:
            comparison.dequantise(weight)
    return comparison.result


class _Comparison:
    def __init__(self, record: Fingerprint, actual: Fingerprint, backbone: nn.Module, source: Source) -> None:
        self.recorded = {leaf.name: leaf for leaf in record.leaves}
        self.actual = {leaf.name: leaf for leaf in actual.leaves}
        self.backbone, self.source, self.result = backbone, source, Agreement()

    def read(self, name: str, tensor: Tensor) -> None:
        """Compare a tensor that is quantised on neither side."""
        leaf = self.recorded[name]
        if self.actual[name].hash == leaf.hash or _has_hash(tensor, leaf):
            self.result.equal.append(name)
            return
        origin = self.source(name)  # in a higher precision, perhaps
        if origin is not None and _has_hash(origin, leaf) and torch.equal(origin.to(tensor.dtype), tensor.cpu()):
            self.result.equal.append(name)
            return
        is_lower = tensor.is_floating_point() and tensor.dtype.itemsize < _itemsize(leaf.dtype)
        self.result.differing[name] = (
            f"it is {self.actual[name].dtype}, and recorded in {leaf.dtype}, which cannot be compared"
            if is_lower
            else "other values"
        )

    def quantise(self, weight: QuantisedWeight, tensor: Tensor) -> None:
        """Compare a dense weight with the record of a quantised one."""
        dense = self._turned(weight.name, tensor)
        renewed = requantised(weight, dense, self.recorded)
        if renewed is None:
            self._judge(weight, sampled(dense), _limit(weight))
            return
        leaves, values = renewed
        if _parts(weight, leaves) == self._parts_of(weight):
            self.result.proven.append(weight.name)
            self.result.errors.append(relative_error(values, dense))
            return
        again, samples = torch.tensor(sampled(values)), torch.tensor(weight.samples)
        if len(again) == len(samples) and len(samples) and _share(again, samples) < _SAME:
            self.result.differing[weight.name] = "quantised again, it has other values"
        else:
            self._judge(weight, sampled(dense), _limit(weight))

    def dequantise(self, weight: QuantisedWeight) -> None:
        """Compare a quantised weight with the record of a dense one."""
        origin, leaf = self.source(weight.name), self.recorded[weight.name]
        values = dequantised(self.backbone, weight.name)
        if origin is None or values is None or origin.shape != leaf.shape:
            self.result.unknown.append(weight.name)
            return
        dense = self._turned(weight.name, origin).to(values.device)
        error = relative_error(values, dense)
        if not _has_hash(origin, leaf):
            is_source = error <= _limit(weight)  # if not, the backbone was changed, or is of another revision
            self.result.differing[weight.name] = (
                "the files that it was loaded from have other values" if is_source else "other values"
            )
            return
        self.result.errors.append(error)
        renewed = requantised(weight, dense, self.actual)
        if renewed and _parts(weight, renewed[0]) == [self.actual[name] for name in weight.part_names]:
            self.result.proven.append(weight.name)
        elif error <= _limit(weight) and (renewed is None or _share(renewed[1], values) >= _SAME):
            self.result.close.append(weight.name)
        else:
            self.result.differing[weight.name] = (
                f"it differs by {error:.2g} of its norm from the files it was loaded from"
            )

    def compare_quantised(self, recorded: QuantisedWeight, weight: QuantisedWeight) -> None:
        """Compare two quantised weights, by their parts or else by their values."""
        if self._parts_of(recorded) == [self.actual.get(name) for name in weight.part_names]:
            self.result.proven.append(weight.name)
            return
        values = sampled(dequantised(self.backbone, weight.name))
        self._judge(recorded, values, math.hypot(_limit(recorded), _limit(weight)))

    def _judge(self, weight: QuantisedWeight, samples: tuple[float, ...], limit: float) -> None:
        """Compare values sampled from a weight with the recorded ones."""
        if not weight.samples or not samples:
            self.result.unknown.append(weight.name)
            return
        error = relative_error(torch.tensor(samples), torch.tensor(weight.samples))
        self.result.errors.append(error)
        if error <= limit:
            self.result.close.append(weight.name)
        else:
            self.result.differing[weight.name] = (
                f"its values differ by {error:.2g} of their norm from the recorded ones"
            )

    def _parts_of(self, weight: QuantisedWeight) -> list[Leaf | None]:
        return [self.recorded.get(name) for name in weight.part_names]

    def _turned(self, name: str, tensor: Tensor) -> Tensor:
        """Return a dense weight the way round that a quantised layer has it, which differs for transformers' Conv1D."""
        layer = module_at(self.backbone, name.rpartition(".")[0])
        is_turned = is_conv1d(layer) or getattr(getattr(layer, "source_cls", None), "__name__", "") == "Conv1D"
        return tensor.T if is_turned and tensor.dim() == 2 else tensor


def relative_error(values: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference of two tensors of one shape, divided by the norm of the second."""
    difference, norm = (values.float() - expected.float()).norm(), expected.float().norm()
    return float(difference / norm) if norm else float(difference > 0)


def _share(values: Tensor, expected: Tensor) -> float:
    """Return the share of values that are as expected, up to rounding."""
    return float(torch.isclose(values.float(), expected.float(), rtol=2e-3, atol=1e-12).float().mean())


def _parts(weight: QuantisedWeight, leaves: dict[str, Leaf]) -> list[Leaf | None]:
    """Return new parts of a weight under the names that they have in the backbone."""
    renamed = zip(weight.part_names, weight.quantisation.parts, strict=True)
    return [Leaf(n, leaf.dtype, leaf.shape, leaf.hash) if (leaf := leaves.get(part)) else None for n, part in renamed]


def _has_hash(tensor: Tensor, leaf: Leaf) -> bool:
    """Return whether a tensor has the recorded values in the recorded precision."""
    dtype = getattr(torch, leaf.dtype, None)
    if tuple(tensor.shape) != leaf.shape or not isinstance(dtype, torch.dtype):
        return False
    return leaf_of(leaf.name, tensor.to(dtype)).hash == leaf.hash


def _itemsize(dtype: str) -> int:
    found = getattr(torch, dtype, None)
    return found.itemsize if isinstance(found, torch.dtype) else 0


def _limit(weight: QuantisedWeight) -> float:
    return _LIMITS.get(weight.quantisation.bits, _LARGEST)
