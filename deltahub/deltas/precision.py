"""Helpers that compute in the wider precision of a parameter and a hidden state, and return the hidden state's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def widened(x: Tensor, parameter: Tensor) -> Tensor:
    """Cast a hidden state to the wider of its own and a parameter's precision."""
    return x.to(torch.promote_types(x.dtype, parameter.dtype))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in the precision of its input, ``(..., n_in)``."""
    if layer.weight.dtype == x.dtype:
        return F.linear(x, layer.weight, layer.bias)
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def added(output: Tensor, update: Tensor) -> Tensor:
    """Add an update to a hidden state, which keeps its dtype; the sum is rounded once."""
    return (output + update).to(output.dtype)
