"""Differences between two deltas: their options, their modules, and their updates.

Of a LoRA the product is compared, not the factors: two LoRAs with the same update can have quite different factors.

    cosine        <U, V> / (||U|| ||V||)
    difference    ||V - U|| / ||U||
    effective rank    exp of the entropy of the singular values: Roy and Vetterli 2007

All three are computed from the factors. Other parameters, and tensors that were trained as a whole, are compared value by value.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deltahub.algebra.agreement import backbone_difference, options_of
from deltahub.algebra.factors import Factors, cosine, effective_rank, norm, singular_values, weighted_sum
from deltahub.algebra.opening import open_operands
from deltahub.algebra.operand import DOWN, UP, Operand, computable, module_of, part_of

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class UpdateDifference:
    """The updates of one module in two deltas, or two tensors of the same name.

    Attributes:
        name: the module, or the tensor.
        cosine: the cosine of the angle between both; None if one is zero.
        difference: the norm of the difference, relative to the first; None if the first is zero and the second is not.
        norms: the norm of each.
        ranks: the rank of each as stored; None for a tensor.
        effective_ranks: the effective rank of each; None for a tensor.
    """

    name: str
    cosine: float | None
    difference: float | None
    norms: tuple[float, float]
    ranks: tuple[int, int] | None = None
    effective_ranks: tuple[float, float] | None = None


@dataclass(frozen=True)
class DeltaDifference:
    """The differences between two deltas.

    Attributes:
        deltas: both as given.
        digests: the digest of each.
        backbone: ``"exact"`` if both records of the backbone agree, else the kind of difference; ``"unknown"`` without a record.
        options: the options that differ, with both values.
        only_first: modules and tensors that only the first delta has, or has in another shape.
        only_second: those that only the second has.
        updates: the modules of both, for LoRA.
        tensors: other tensors of both.
        cosine: over all modules and tensors of the deltas' own; None if there are none, or one side is zero.
        difference: the same, relative to the first.
    """

    deltas: tuple[str, str]
    digests: tuple[str, str]
    backbone: str
    options: dict[str, Pair]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    updates: tuple[UpdateDifference, ...]
    tensors: tuple[UpdateDifference, ...]
    cosine: float | None
    difference: float | None

    @property
    def same(self) -> bool:
        """Whether both have the same options, modules and values."""
        parts = (*self.updates, *self.tensors)
        return not (self.options or self.only_first or self.only_second or any(part.difference != 0 for part in parts))


def diff(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> DeltaDifference:
    """Compare two deltas; they may be of different backbones and methods.

    Args:
        first: a folder, a reference or a link.
        second: the same.

    Raises:
        CheckpointError: one is damaged.
        ConfigError: one has a form that cannot be computed with.
        NotFoundError: no source has one of them.
    """
    one, other = map(computable, open_operands([first, second]))
    places = [set(operand.places) if operand.delta_type == "lora" else set[str]() for operand in (one, other)]
    updates = tuple(_updates(one, other, sorted(places[0] & places[1])))
    names = [
        set(operand.table) - {place + end for place in own for end in (DOWN, UP)}
        for operand, own in zip((one, other), places, strict=True)
    ]
    shared = [n for n in sorted(names[0] & names[1]) if one.table[n].shape == other.table[n].shape]
    tensors = tuple(_tensor(one, other, name) for name in shared)
    compared = {part.name for part in (*updates, *tensors)}
    only = [{*map(_shown, places[side]), *names[side]} - compared for side in (0, 1)]
    own = [part for part in (*updates, *tensors) if part.name not in one.trained]
    total_cosine, total_difference = _total(own)
    level = backbone_difference(one, other)
    return DeltaDifference(
        deltas=(one.label, other.label),
        digests=(one.parent["digest"], other.parent["digest"]),
        backbone=level.level if level else "unknown",
        options=_options(one, other),
        only_first=tuple(sorted(only[0])),
        only_second=tuple(sorted(only[1])),
        updates=updates,
        tensors=tensors,
        cosine=total_cosine,
        difference=total_difference,
    )


def _shown(place: str) -> str:
    return ".".join(filter(None, (module_of(place), part_of(place))))


def _options(one: Operand, other: Operand) -> dict[str, Pair]:
    """Return the differing options; the method counts as one."""
    sides = [{"delta_type": operand.delta_type, **options_of(operand)} for operand in (one, other)]
    pairs = {key: (sides[0].get(key), sides[1].get(key)) for key in sorted(sides[0].keys() | sides[1].keys())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _updates(one: Operand, other: Operand, places: list[str]) -> Iterator[UpdateDifference]:
    for place in places:
        first, second = one.factors(place), other.factors(place)
        if first.shape == second.shape:
            yield _update(_shown(place), first, second)


def _update(name: str, first: Factors, second: Factors) -> UpdateDifference:
    values = [singular_values(factors) for factors in (first, second)]
    norms = float(values[0].norm()), float(values[1].norm())
    return UpdateDifference(
        name=name,
        cosine=_known(cosine(first, second)),
        difference=_relative(norm(weighted_sum([second, first], [1.0, -1.0])), norms),
        norms=norms,
        ranks=(first.rank, second.rank),
        effective_ranks=(effective_rank(values[0]), effective_rank(values[1])),
    )


def _tensor(one: Operand, other: Operand, name: str) -> UpdateDifference:
    first, second = one.tensor(name).double().flatten(), other.tensor(name).double().flatten()
    norms = float(first.norm()), float(second.norm())
    angle = float(first @ second) / (norms[0] * norms[1]) if all(norms) else math.nan
    return UpdateDifference(name, _known(angle), _relative(float((second - first).norm()), norms), norms)


def _relative(difference: float, norms: tuple[float, float]) -> float | None:
    rounding = 1e-12 * max(norms)  # of a difference of equal products with other factors
    if difference <= rounding:
        return 0.0
    return difference / norms[0] if norms[0] else None


def _known(number: float) -> float | None:
    return max(-1.0, min(1.0, number)) if math.isfinite(number) else None


def _total(parts: list[UpdateDifference]) -> tuple[float | None, float | None]:
    """Return the cosine and the relative difference over all parts together."""
    inner = sum((part.cosine or 0.0) * part.norms[0] * part.norms[1] for part in parts)
    squares = [sum(part.norms[side] ** 2 for part in parts) for side in (0, 1)]
    lost = sum(
        (part.difference * part.norms[0] if part.difference is not None else part.norms[1]) ** 2 for part in parts
    )
    if not squares[0]:
        return None, None
    return (inner / math.sqrt(squares[0] * squares[1]) if squares[1] else None), math.sqrt(lost / squares[0])
