"""The tensors that deltas trained as a whole, such as heads: kept if they agree, else chosen or averaged as the caller says.

Their values, not their differences to the backbone, are stored, so that without the backbone only a mean is defined:

    sum_i w_i v_i / sum_i w_i
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from deltahub.algebra.operand import Operand
from deltahub.errors import ConfigError

FIRST: Final = "first"
AVERAGE: Final = "average"


def check_heads(heads: str | None) -> None:
    """Check the rule for tensors that were trained as a whole.

    Raises:
        ConfigError: there is no such rule.
    """
    if heads not in (None, FIRST, AVERAGE):
        msg = f"heads is {heads!r}; expected first or average."
        raise ConfigError(msg)


def trained_tensors(operands: Sequence[Operand], weights: Sequence[float], heads: str | None) -> dict[str, Tensor]:
    """Return the tensors of a result that replace the backbone's own.

    Args:
        weights: one for each delta, for an average.
        heads: ``"first"`` to take each from the first delta that has it, ``"average"`` for the weighted mean; None to refuse
            those that differ.

    Raises:
        ConfigError: a tensor differs, or only some deltas have it, and `heads` does not say what to do.
    """
    names = sorted({name for operand in operands for name in operand.trained})
    return {name: _tensor(name, operands, weights, heads) for name in names}


def _tensor(name: str, operands: Sequence[Operand], weights: Sequence[float], heads: str | None) -> Tensor:
    holders = [operand for operand in operands if name in operand.trained]
    first = holders[0].tensor(name)
    if len(holders) == len(operands) and all(_same(first, other.tensor(name)) for other in holders[1:]):
        return first
    if heads == FIRST:
        return first
    if heads == AVERAGE:
        return _average(name, operands, weights)
    if len(holders) < len(operands):
        missing = next(operand for operand in operands if operand not in holders)
        msg = (
            f"{holders[0].label} trained {name} as a whole, and {missing.label} did not. Take it from the first that has it: heads='first' "
            "(--heads first)."
        )
        raise ConfigError(msg)
    msg = (
        f"{holders[0].label} and {holders[1].label} hold different values of {name}, which they trained as a whole. Heads of different tasks "
        "do not add up: take the first one's with heads='first' (--heads first), or the weighted mean with heads='average' (--heads average)."
    )
    raise ConfigError(msg)


def _same(first: Tensor, other: Tensor) -> bool:
    return first.dtype == other.dtype and torch.equal(first, other)


def _average(name: str, operands: Sequence[Operand], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of a tensor, in the widest of its precisions.

    Raises:
        ConfigError: there is no mean: a delta does not hold it, its shapes differ, it holds counts, or the weights add up to zero.
    """
    fault = ""
    if missing := [operand.label for operand in operands if name not in operand.trained]:
        fault = f"{missing[0]} does not hold it"
    elif len({operand.trained[name].shape for operand in operands}) > 1:
        fault = "its shapes differ"
    elif not sum(weights):
        fault = "the weights add up to zero"
    if fault:
        msg = f"{name} has no average: {fault}. Use heads='first' (--heads first)."
        raise ConfigError(msg)
    tensors = [operand.tensor(name) for operand in operands]
    if not all(tensor.is_floating_point() for tensor in tensors):
        msg = f"{name} has no average: it holds {tensors[0].dtype}. Use heads='first' (--heads first)."
        raise ConfigError(msg)
    dtype = tensors[0].dtype
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        dtype = torch.promote_types(dtype, tensor.dtype)
        total += weight * tensor.double()
    return (total / sum(weights)).to(dtype)
