"""The weight of a linear layer, whichever way round it is stored.

    Linear          weight: (n_out, n_in)
    Conv1D          weight: (n_in, n_out)       transformers' own, as in GPT-2
    Embedding       weight: (rows, width)       a linear layer of one-hot inputs, so (n_in, n_out) as well

Nothing here changes a weight, and nothing is copied except selected rows and offloaded weights.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from deltahub.engine.offloading import resident
from deltahub.engine.shapes import is_conv1d


def is_turned(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as ``(n_in, n_out)``."""
    return isinstance(layer, nn.Embedding) or is_conv1d(layer)


def linear_weight(layer: nn.Module) -> Tensor:
    """Return a layer's weight as ``(n_out, n_in)``: the parameter itself or a view; for `SomeRows`, a copy of the rows."""
    weight = cast("Tensor", resident(layer, "weight"))
    return weight.T if is_turned(layer) else weight


def linear_bias(layer: nn.Module) -> Tensor | None:
    """Return a layer's bias, ``(n_out,)``, or None."""
    return cast("Tensor | None", resident(layer, "bias"))


def as_kept(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a weight ``(n_out, n_in)`` the way round that a layer stores it."""
    return weight.T if is_turned(layer) else weight


class Rows(Protocol):
    """A selection of rows: a `layouts.Part`."""

    def rows(self, whole: int) -> Tensor:
        """Return the numbers of the selected rows among `whole`."""
        ...


class SomeRows:
    """Some output rows of a linear layer, readable as a linear layer; nothing is copied until it is accessed.

    Args:
        layer: the whole layer.
        part: the selection of rows.
    """

    __slots__ = ("layer", "part")

    def __init__(self, layer: nn.Module, part: Rows) -> None:
        self.layer = layer
        self.part = part

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return linear_weight(self.layer).shape[1]

    @property
    def out_features(self) -> int:
        """Number of rows."""
        return len(self.part.rows(linear_weight(self.layer).shape[0]))

    @property
    def weight(self) -> Tensor:
        """The rows of the weight, ``(n_rows, n_in)``."""
        whole = linear_weight(self.layer)
        return whole[self.part.rows(whole.shape[0]).to(whole.device)]

    @property
    def bias(self) -> Tensor | None:
        """The rows of the bias, ``(n_rows,)``."""
        whole = linear_bias(self.layer)
        return None if whole is None else whole[self.part.rows(whole.shape[0]).to(whole.device)]
