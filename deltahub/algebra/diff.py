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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltahub.algebra.agreement import backbone_difference, options_of
from deltahub.algebra.factors import Factors, effective_rank, inner, norm, singular_values, weighted_sum
from deltahub.algebra.opening import open_operands
from deltahub.algebra.operand import Operand, computable
from deltahub.algebra.places import DOWN, UP, Place

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
        effective_ranks: the effective rank of each, the mean of a stack of experts; None for a tensor.
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
    places = [operand.places if operand.delta_type == "lora" else () for operand in (one, other)]
    updates = tuple(_updates(one, other, *map(_by_stem, places)))
    names = [
        set(operand.table) - {place.stem + end for place in own for end in (DOWN, UP)}
        for operand, own in zip((one, other), places, strict=True)
    ]
    shared = [n for n in sorted(names[0] & names[1]) if one.table[n].shape == other.table[n].shape]
    tensors = tuple(_tensor(one, other, name) for name in shared)
    compared = {part.name for part in (*updates, *tensors)}
    only = [{*(place.name for place in places[side]), *names[side]} - compared for side in (0, 1)]
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


def _by_stem(places: Iterable[Place]) -> dict[str, list[Place]]:
    """Return the places of each layer, or of each stack of experts."""
    stems: dict[str, list[Place]] = {}
    for place in places:
        stems.setdefault(place.stem, []).append(place)
    return stems


def _options(one: Operand, other: Operand) -> dict[str, Pair]:
    """Return the differing options; the method counts as one."""
    sides = [{"delta_type": operand.delta_type, **options_of(operand)} for operand in (one, other)]
    pairs = {key: (sides[0].get(key), sides[1].get(key)) for key in sorted(sides[0].keys() | sides[1].keys())}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _updates(
    one: Operand, other: Operand, first: Mapping[str, list[Place]], second: Mapping[str, list[Place]]
) -> Iterator[UpdateDifference]:
    """Yield the difference of each layer, and of each stack of experts as a batch of matrices."""
    for stem in sorted(first.keys() & second.keys()):
        pairs = [(one.factors(place), other.factors(place)) for place in first[stem] if first[stem] == second[stem]]
        if pairs and all(mine.shape == yours.shape for mine, yours in pairs):
            yield _update(first[stem][0].name, pairs)


def _update(name: str, pairs: Sequence[tuple[Factors, Factors]]) -> UpdateDifference:
    values = [[singular_values(factors) for factors in side] for side in zip(*pairs, strict=True)]
    norms = float(torch.cat(values[0]).norm()), float(torch.cat(values[1]).norm())
    product = sum(inner(first, second) for first, second in pairs)
    changes = [norm(weighted_sum([second, first], [1.0, -1.0])) for first, second in pairs]
    effective = [sum(map(effective_rank, side)) / len(side) for side in values]
    return UpdateDifference(
        name=name,
        cosine=_known(product / (norms[0] * norms[1]) if all(norms) else math.nan),
        difference=_relative(math.hypot(*changes), norms),
        norms=norms,
        ranks=(pairs[0][0].rank, pairs[0][1].rank),
        effective_ranks=(effective[0], effective[1]),
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
