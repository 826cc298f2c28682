"""Combining deltas: one delta whose update is made of those of several, module by module.

The updates of LoRAs are combined as products, with their scales, whatever their ranks, alphas and patterns. BitFit, LayerNorm tuning and
IA3 have updates that are linear in their parameters, or in their parameters less one, and are combined value by value. Bottleneck
adapters are not linear: their parameters can be averaged, as in Chronopoulou et al. 2023, "AdapterSoup",
https://arxiv.org/abs/2302.07027, which makes sense for adapters that started from the same values. Other methods are refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.algebra.agreement import (
    common_facts,
    common_record,
    common_targets,
    options_of,
    require_same_method,
    unfrozen,
)
from deltahub.algebra.factors import Factors
from deltahub.algebra.methods import Method, Recipe, combined_factors, combined_values
from deltahub.algebra.opening import open_operands
from deltahub.algebra.operand import Operand, computable, refuse_more_than_factors
from deltahub.algebra.places import Place
from deltahub.algebra.result import (
    COMBINED,
    Change,
    Computed,
    Written,
    check_folder,
    described_weights,
    lora_options,
    lora_tensors,
    same_ranks,
    written,
)
from deltahub.algebra.trained import check_heads, trained_tensors
from deltahub.errors import CheckpointError, ConfigError

# The value of a parameter that changes nothing: the update is linear in the difference to it.
_NEUTRAL: Final = {"bitfit": 0.0, "layer_norm": 0.0, "ia3": 1.0, "token_rows": 0.0}
_AVERAGED: Final = ("adapter", "parallel_adapter")
_ROUNDING: Final = 1e-9

Report = Callable[[int, int], None]  # called with the number of modules done, and of all


def combine(
    deltas: Sequence[str | os.PathLike[str]],
    to: str | os.PathLike[str],
    *,
    method: str = "linear",
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    energy: float | None = None,
    density: float | None = None,
    seed: int = 0,
    heads: str | None = None,
    check_hash: bool = True,
    force: bool = False,
    report: Report | None = None,
) -> Written:
    """Combine deltas of one backbone into a new delta; the formulas are in `deltahub.algebra.methods`.

    Args:
        deltas: folders, references or links; adapters of PEFT of type LORA too.
        to: the folder to write, which is new or empty.
        method: ``"linear"``, ``"cat"``, ``"svd"``, ``"slerp"``, ``"ties"`` or ``"dare"``.
        weights: one for each delta; by default equal ones that add up to 1.
        rank: the largest rank of each update. By default linear and slerp are exact, svd takes the largest rank of the deltas,
            and ties and dare the sum of the ranks.
        energy: the share of each update's squared norm to keep, instead of a rank or with one as its limit.
        density: the share of values that ties (0.2 by default) and dare (0.5) keep.
        seed: of dare's random values; the same seed gives the same delta.
        heads: for tensors that were trained as a whole and differ: ``"first"`` or ``"average"``; by default they are refused.
        check_hash: whether the deltas must have the same backbone.
        force: replace a delta in `to`.
        report: called with the number of modules done, and of all.

    Returns:
        The folder, its digest, and the rank and error of each module.

    Raises:
        ConfigError: an option is invalid, or the operation is not defined for these deltas; the message says why.
        CheckpointError: a delta is damaged, the backbones differ, or `to` holds something.
        NotFoundError: no source has one of the deltas.
        StorageError: the disk is full or not writable; nothing is left.
    """
    if isinstance(deltas, (str, os.PathLike)) or len(deltas) < 2:
        msg = "combine takes a list of two deltas or more. To change a single one, use scale or resize."
        raise ConfigError(msg)
    recipe = Recipe.checked(method, len(deltas), weights, rank, energy, density, seed)
    check_heads(heads)
    folder = Path(to).expanduser()
    check_folder(folder, force=force)
    operands = open_operands(deltas)
    parameters: dict[str, Any] = recipe.parameters()
    parameters |= {
        key: value for key, value in (("heads", heads), ("check_hash", check_hash)) if value not in (None, True)
    }
    computed = combined(operands, recipe, heads=heads, check_hash=check_hash, report=report)
    lineage = {"operation": "combine", "parameters": parameters}
    about = f"Combined from {len(operands)} deltas by {recipe.method}, with the weights {described_weights(recipe.weights)}."
    return written(folder, computed, operands, COMBINED, lineage, about)


def combined(
    operands: Sequence[Operand],
    recipe: Recipe,
    *,
    heads: str | None = None,
    check_hash: bool = True,
    report: Report | None = None,
) -> Computed:
    """Compute a combination without writing it: see `combine`."""
    operands = [*map(computable, operands)]
    require_same_method(operands)
    for operand in operands:
        refuse_more_than_factors(operand, "combined")
    record = common_record(operands, check_hash=check_hash)
    trained = trained_tensors(operands, recipe.weights, heads)
    common = {"unfrozen_modules": unfrozen(operands), **common_facts(operands)}
    if operands[0].delta_type == "lora":
        targets = common_targets(operands)
        changes: dict[str, Change] = {}
        updates: dict[Place, Factors] = {}
        for place, update, error in _updates(operands, recipe, report):
            updates[place], others = update, changes.get(place.name)
            largest = (max(update.rank, others.rank), max(error, others.error)) if others else (update.rank, error)
            changes[place.name] = Change(place.name, *largest)
        updates = same_ranks(updates)
        shared = {"share_experts": True} if any(operand.shares_experts for operand in operands) else {}
        options = {**lora_options(updates), "lora_dropout": _dropout(operands), **shared, **targets, **common}
        return Computed(options, {**lora_tensors(updates), **trained}, record, tuple(changes.values()))
    options = {"delta_type": operands[0].delta_type, **options_of(operands[0]), **common}
    return Computed(options, {**_values(operands, recipe), **trained}, record)


def _updates(
    operands: Sequence[Operand], recipe: Recipe, report: Report | None
) -> Iterator[tuple[Place, Factors, float]]:
    """Yield the combined update of each place, in the precision of its factors, and its relative error."""
    places = sorted({place for operand in operands for place in operand.places})
    for number, place in enumerate(places, 1):
        terms = [operand.factors(place) if place in operand.places else None for operand in operands]
        shapes = {term.shape: operand.label for term, operand in zip(terms, operands, strict=True) if term is not None}
        if len(shapes) > 1:
            sizes = ", ".join(f"{label}: {list(shape)}" for shape, label in shapes.items())
            msg = f"The updates of {place.name} have different shapes ({sizes}), so the deltas belong to different backbones."
            raise CheckpointError(f"{msg} Leave one out.")
        result = combined_factors(recipe, terms, place.stream)
        dtypes = [operand.dtype(place) for operand in operands if place in operand.places]
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        yield place, result.factors.to(dtype), result.error
        if report:
            report(number, len(places))


def _dropout(operands: Sequence[Operand]) -> float:
    """Return the dropout that all deltas have, else none; it acts in training only."""
    values = {float(operand.document.get("lora_dropout") or 0.0) for operand in operands}
    return values.pop() if len(values) == 1 else 0.0


def _values(operands: Sequence[Operand], recipe: Recipe) -> Mapping[str, Tensor]:
    """Combine the parameters of a method other than LoRA, tensor by tensor.

    Raises:
        ConfigError: the method of combining is not defined for them.
    """
    kind = operands[0].delta_type
    _check_defined(kind, recipe)
    neutral, tensors = _NEUTRAL.get(kind, 0.0), {}
    for name in sorted(operands[0].own):
        terms = [operand.tensor(name) for operand in operands]
        dtype = torch.float32
        for term in terms:
            dtype = torch.promote_types(dtype, term.dtype)
        differences = [term.double() - neutral for term in terms]
        tensors[name] = (combined_values(recipe, differences, name) + neutral).to(dtype)
    return tensors


def _check_defined(kind: str, recipe: Recipe) -> None:
    """Refuse a combination that has no meaning for a method.

    Raises:
        ConfigError: it has none; the message says why.
    """
    if kind in _NEUTRAL:
        if recipe.method in (Method.CAT, Method.SVD) or recipe.rank is not None or recipe.energy is not None:
            msg = f"cat, svd, rank and energy are for low-rank updates, and a {kind} has none. Use linear, slerp, ties or dare."
            raise ConfigError(msg)
        return
    if kind not in _AVERAGED:
        msg = (
            f"A {kind} is not linear in its parameters, so neither a sum nor a mean of them has a meaning. Load the deltas on one backbone "
            "instead, where they compose, or train one of them further."
        )
        raise ConfigError(msg)
    if recipe.method is not Method.LINEAR or recipe.rank is not None or recipe.energy is not None:
        msg = f"Of a {kind}, whose update is not linear, only the parameters can be averaged: use linear, without rank and energy."
        raise ConfigError(msg)
    if abs(sum(recipe.weights) - 1) > _ROUNDING:
        msg = f"Of a {kind}, whose update is not linear, only a mean is defined: the weights must add up to 1, not {sum(recipe.weights):.6g}."
        raise ConfigError(msg)
