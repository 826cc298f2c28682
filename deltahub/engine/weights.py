"""The weight of a linear layer, whichever way round it is stored.

    Linear          weight: (n_out, n_in)
    Conv1D          weight: (n_in, n_out)       transformers' own, as in GPT-2
    Embedding       weight: (rows, width)       a linear layer of one-hot inputs, so (n_in, n_out) as well
    Conv            weight: (n_out, channels, *kernel)      a linear layer of patches: n_in counts channels times kernel

Nothing here changes a weight, and nothing is copied except selected rows, offloaded weights and the values of quantised ones.

A delta may act on a part of a fused layer alone, such as the q rows of a q,k,v projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, Self, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deltahub.engine.insertion import Args, Insertion, Kwargs, stackable
from deltahub.engine.offloading import resident
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.shapes import is_conv1d
from deltahub.engine.structure.layouts import Part


def is_turned(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as ``(n_in, n_out)``."""
    return isinstance(layer, nn.Embedding) or is_conv1d(layer)


def linear_weight(layer: nn.Module) -> Tensor:
    """Return a layer's weight as ``(n_out, n_in)``: the parameter itself or a view; for `SomeRows`, a copy of the rows.

    A quantised weight is dequantised, which makes a new tensor without a gradient.
    """
    coded = None if isinstance(layer, SomeRows) else quantised(layer)
    weight = cast("Tensor", resident(layer, "weight")) if coded is None else coded.values()
    if weight.dim() > 2:
        return weight.flatten(1)
    return weight.T if is_turned(layer) else weight


def linear_bias(layer: nn.Module) -> Tensor | None:
    """Return a layer's bias, ``(n_out,)``, or None."""
    return cast("Tensor | None", resident(layer, "bias"))


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """Return the shape of a layer's weight as ``(n_out, n_in)``, without reading it."""
    coded = quantised(layer)
    shape = tuple(cast("Tensor", layer.weight).shape) if coded is None else coded.shape
    if len(shape) > 2:
        return shape[0], math.prod(shape[1:])
    return (shape[1], shape[0]) if is_turned(layer) else (shape[0], shape[1])


def as_stored(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight ``(n_out, n_in)`` the way round that a layer stores it."""
    if isinstance(layer, _ConvNd):
        return weight.view(layer.weight.shape)
    return weight.T if is_turned(layer) else weight


class Rows(Protocol):
    """A selection of rows: a `layouts.Part`."""

    def rows(self, whole: int) -> Tensor:
        """Return the numbers of the selected rows among `whole`."""
        ...


class _Weight:
    """The weight of a layer during one call, read when it is needed first: a quantised one is dequantised."""

    __slots__ = ("layer", "value")

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.value: Tensor | None = None

    def read(self) -> Tensor:
        """Return the weight, ``(n_out, n_in)``."""
        if self.value is None:
            self.value = linear_weight(self.layer)
        return self.value


class SomeRows:
    """Some output rows of a linear layer, readable as a linear layer; nothing is copied until it is accessed.

    Args:
        layer: the whole layer.
        part: the selection of rows.
        whole: the weight of the whole layer, shared with other parts; by default read anew for each access.
    """

    __slots__ = ("layer", "part", "whole")

    def __init__(self, layer: nn.Module, part: Rows, whole: _Weight | None = None) -> None:
        self.layer = layer
        self.part = part
        self.whole = whole

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return matrix_shape(self.layer)[1]

    @property
    def out_features(self) -> int:
        """Number of rows."""
        return len(self.part.rows(matrix_shape(self.layer)[0]))

    @property
    def weight(self) -> Tensor:
        """The rows of the weight, ``(n_rows, n_in)``."""
        full_weight = linear_weight(self.layer) if self.whole is None else self.whole.read()
        return full_weight[self.part.rows(full_weight.shape[0]).to(full_weight.device)]

    @property
    def bias(self) -> Tensor | None:
        """The rows of the bias, ``(n_rows,)``."""
        full_bias = linear_bias(self.layer)
        return None if full_bias is None else full_bias[self.part.rows(full_bias.shape[0]).to(full_bias.device)]


class FusedInsertion(Insertion):
    """An insertion that holds one insertion for each selected part of a layer; the other parts pass through.

    Args:
        parts: the parts, all in the same layer, with the insertion of each.
    """

    def __init__(self, parts: Mapping[Part, Insertion]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.reads_weight = any(insertion.reads_weight for insertion in parts.values())
        for part, insertion in parts.items():
            self.add_module(part.label, insertion)

    def at(self, part: Part) -> Insertion:
        """Return the insertion of a part."""
        return cast("Insertion", self._modules[part.label])

    def check_strength(self, strength: float) -> None:
        """Check that each part's insertion can have the strength."""
        for part in self.parts:
            self.at(part).check_strength(strength)

    def set_strength(self, strength: float) -> None:
        """Multiply the change of each part."""
        for part in self.parts:
            self.at(part).set_strength(strength)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the selected features of `output`, a tensor with shape ``(..., width)``."""
        whole = _Weight(target)
        for part in self.parts:
            rows = cast("nn.Module", SomeRows(target, part, whole))  # the part's weights, for insertions that read them
            share = self.at(part).after(rows, args, kwargs, part.read(output))
            output = part.written(output, share)
        return output

    @classmethod
    def after_rows(cls, members: tuple[Self, ...], target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Process all rows at once if every member acts on the same parts and the insertions of each part can be stacked."""
        if any(member.parts != members[0].parts for member in members):
            return NotImplemented
        for part in members[0].parts:
            acting = tuple(member.at(part) for member in members)
            if len({stackable(insertion) for insertion in acting}) > 1:
                return NotImplemented
            rows = cast("nn.Module", SomeRows(target, part))
            share = type(acting[0]).after_rows(acting, rows, args, kwargs, part.read(output))
            if share is NotImplemented:
                return NotImplemented
            output = part.written(output, share)
        return output

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the target's weight, and its bias if that changes, with every part's own rows merged."""
        weight, bias = linear_weight(target), linear_bias(target)
        tensors: dict[str, Tensor] = {}
        for part in self.parts:
            rows = part.rows(weight.shape[0]).to(weight.device)
            for key, value in self.at(part).merged(cast("nn.Module", SomeRows(target, part))).items():
                old = weight if key == "weight" or bias is None else bias
                new = tensors.setdefault(key, old.detach().to(value.dtype).clone())
                new[rows] = value
        return {key: as_stored(target, value) if key == "weight" else value for key, value in tensors.items()}


def members_of(insertion: Insertion) -> tuple[Insertion, ...]:
    """Return the insertions on the parts of a fused layer, or the only insertion of another one."""
    return (
        tuple(insertion.at(part) for part in insertion.parts) if isinstance(insertion, FusedInsertion) else (insertion,)
    )
