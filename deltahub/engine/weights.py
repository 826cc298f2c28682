"""The weight of a linear layer, whichever way round it is kept.

    Linear          weight: (n_out, n_in)
    Conv1D          weight: (n_in, n_out)       transformers' own, as in GPT-2
    Embedding       weight: (rows, width)       a linear layer of one-hot inputs, so (n_in, n_out) as well

Everything here is a view; nothing is copied or changed.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from deltahub.engine.shapes import is_conv1d


def is_turned(layer: nn.Module) -> bool:
    """Whether a layer keeps its weight as ``(n_in, n_out)``."""
    return isinstance(layer, nn.Embedding) or is_conv1d(layer)


def linear_weight(layer: nn.Module) -> Tensor:
    """The weight of a layer as ``(n_out, n_in)``: the parameter itself or a view of it."""
    weight = cast("Tensor", layer.weight)
    return weight.T if is_turned(layer) else weight


def linear_bias(layer: nn.Module) -> Tensor | None:
    """The bias of a layer, ``(n_out,)``, if it has one."""
    return cast("Tensor | None", getattr(layer, "bias", None))


def as_kept(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight ``(n_out, n_in)`` the way round that a layer keeps it."""
    return weight.T if is_turned(layer) else weight


class SomeRows(nn.Module):
    """Some output rows of a linear layer, as a linear layer.

    Args:
        layer: the whole layer.
        rows: which outputs, ``(n_rows,)`` integers.
    """

    def __init__(self, layer: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.weight = linear_weight(layer)[rows]
        bias = linear_bias(layer)
        self.bias = None if bias is None else bias[rows]
