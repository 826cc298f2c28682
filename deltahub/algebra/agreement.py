"""Checks that deltas can be computed with together: the same backbone, the same method, the same places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from deltahub.algebra.operand import Operand
from deltahub.algebra.places import Place
from deltahub.checkpoint.backbone_record import EXACT, Difference, Fingerprint, Leaf
from deltahub.checkpoint.config import CHECKPOINT_KEYS
from deltahub.errors import CheckpointError, ConfigError
from deltahub.log import LOGGER

_TARGETS: Final = ("modified_modules", "exclude_modules", "common_structure")
_OF_BACKBONE: Final = ("backbone_class", "backbone_checkpoint_name", "backbone_hash", "backbone_revision")


def common_record(operands: Sequence[Operand], *, check_hash: bool = True) -> Fingerprint | None:
    """Return the record of the backbone that the deltas share, with all tensors that any of them recorded.

    A record leaves out the tensors that its delta trained as a whole; another delta may have kept them.

    Args:
        check_hash: whether to refuse deltas whose backbones differ or cannot be compared.

    Returns:
        The record, of the lowest version among them; None if not every delta has one.

    Raises:
        CheckpointError: the backbones differ, or it is unknown whether they do.
    """
    recorded = [operand for operand in operands if operand.fingerprint is not None]
    leaves: dict[str, Leaf] = {}
    for operand in recorded:
        if check_hash:
            _require_same(recorded[0], operand)
        leaves = {leaf.name: leaf for leaf in _leaves(operand)} | leaves
    if len(recorded) == len(operands):
        fingerprints = [operand.fingerprint for operand in recorded if operand.fingerprint is not None]
        quantised = {weight.name: weight for one in reversed(fingerprints) for weight in one.quantised}
        version = min(one.version for one in fingerprints)
        return Fingerprint(tuple(sorted(leaves.values())), version, tuple(sorted(quantised.values())))
    if check_hash:
        _require_same_name(operands)
    if recorded:
        LOGGER.warning(
            "%s has no record of its backbone, only its name was compared, and the result has no record either. "
            "Record it first: deltahub check DELTA --backbone BACKBONE --record",
            next(operand.label for operand in operands if operand.fingerprint is None),
        )
    return None


def _leaves(operand: Operand) -> tuple[Leaf, ...]:
    return operand.fingerprint.leaves if operand.fingerprint else ()


def backbone_difference(first: Operand, other: Operand) -> Difference | None:
    """Compare the backbones of two deltas, without the tensors that one of them trained as a whole; None if one has no record."""
    if first.fingerprint is None or other.fingerprint is None:
        return None
    pairs = ((first.fingerprint, other.trained), (other.fingerprint, first.trained))
    sides = [
        replace(one, leaves=tuple(leaf for leaf in one.leaves if leaf.name not in trained)) for one, trained in pairs
    ]
    return sides[0].compare(sides[1])


def _require_same(first: Operand, other: Operand) -> None:
    assert first.fingerprint is not None
    assert other.fingerprint is not None
    is_alike = first.fingerprint.is_quantised == other.fingerprint.is_quantised
    if is_alike and first.fingerprint.version != other.fingerprint.version:
        older = first if first.fingerprint.version < other.fingerprint.version else other
        msg = (
            f"{older.label} was saved by an earlier release, whose record of the backbone covers fewer tensors. Load it on its backbone "
            "and save it again."
        )
        raise CheckpointError(msg)
    difference = backbone_difference(first, other)
    assert difference is not None
    if difference.level != EXACT:
        msg = (
            f"{first.label} and {other.label} were trained on different backbones ({difference.level}): {difference.detail}. Their updates "
            "do not add up on either. Use deltas of one backbone, or insist with check_hash=False (--no-check-hash)."
        )
        raise CheckpointError(msg)


def _require_same_name(operands: Sequence[Operand]) -> None:
    """Compare the names of backbones where a delta has no record, such as an adapter of PEFT.

    Raises:
        CheckpointError: the names differ, or one is unknown.
    """
    if len(operands) == 1:
        return
    names = [operand.base.rstrip("/") for operand in operands]
    if "" in names or len({name.rpartition("/")[2] for name in names}) > 1:
        unrecorded = next(operand.label for operand in operands if operand.fingerprint is None)
        shown = ", ".join(f"{one.label}: {name or 'unknown'}" for one, name in zip(operands, names, strict=True))
        msg = (
            f"{unrecorded} has no record of its backbone, and the names do not show that it is the same one ({shown}). If you know that it "
            "is, insist with check_hash=False (--no-check-hash)."
        )
        raise CheckpointError(msg)


def require_same_method(operands: Sequence[Operand]) -> None:
    """Refuse deltas of different methods, and other methods than LoRA with different options or tensors.

    Raises:
        ConfigError: they differ; the message says in which.
    """
    first = operands[0]
    for other in operands[1:]:
        if other.delta_type != first.delta_type:
            msg = (
                f"{first.label} is a {first.delta_type} and {other.label} a {other.delta_type}, which act at different places and in different "
                "ways. Load both on one backbone instead: deltas compose there."
            )
            raise ConfigError(msg)
        if first.delta_type == "lora":
            _require_same_shapes(first, other)
            continue
        options = [options_of(one) for one in (first, other)]
        keys = (options[0].keys() | options[1].keys()) - {"unfrozen_modules"}
        differing = [key for key in sorted(keys) if options[0].get(key) != options[1].get(key)]
        if differing:
            msg = f"{first.label} and {other.label} have different {', '.join(differing)}. Only deltas with the same options can be combined."
            raise ConfigError(msg)
        shapes = [{name: entry.shape for name, entry in one.own.items()} for one in (first, other)]
        if shapes[0] != shapes[1]:
            odd = sorted(
                name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
            )
            msg = f"{first.label} and {other.label} do not have the same tensors: {odd[0]} differs. Only like deltas can be combined."
            raise ConfigError(msg)


def _require_same_shapes(first: Operand, other: Operand) -> None:
    """Refuse LoRAs of which one acts on a whole layer and the other on a part of it, and experts that differ in number or in what they share."""
    _require_same_experts(first, other)
    parts = [{place.address: bool(place.part) for place in one.places} for one in (first, other)]
    for module in sorted(parts[0].keys() & parts[1].keys()):
        if parts[0][module] != parts[1][module]:
            whole, part = (other, first) if parts[0][module] else (first, other)
            msg = (
                f"{part.label} acts on a part of the fused layer {module}, and {whole.label} on all of its rows. Which rows the part has, only "
                "the backbone tells. Train both in the same way."
            )
            raise ConfigError(msg)


def _require_same_experts(first: Operand, other: Operand) -> None:
    if {first.shares_experts, other.shares_experts} == {True, False}:
        sharing, single = (first, other) if first.shares_experts else (other, first)
        msg = (
            f"The experts share one update in {sharing.label}, and each has its own in {single.label}, and a LoRA does one of the two. Train both "
            "with the same share_experts."
        )
        raise ConfigError(msg)
    counts = [Counter(place.stem for place in one.places) for one in (first, other)]
    for stem in sorted(counts[0].keys() & counts[1].keys()):
        if counts[0][stem] != counts[1][stem]:
            sizes = ", ".join(f"{one.label}: {count[stem]}" for one, count in zip((first, other), counts, strict=True))
            msg = f"The stacks at {Place.of(stem).name} have different numbers of experts ({sizes}), so the deltas belong to different backbones."
            raise CheckpointError(f"{msg} Leave one out.")


def options_of(operand: Operand) -> dict[str, Any]:
    """Return the options of a delta, without the facts about its backbone and its checkpoint."""
    facts = {*CHECKPOINT_KEYS, *_OF_BACKBONE}
    return {key: value for key, value in operand.document.items() if key not in facts}


def common_targets(operands: Sequence[Operand]) -> dict[str, Any]:
    """Return the addresses of the modules of a result: those of the deltas if they agree, else the names of all modules.

    Raises:
        ConfigError: the deltas act on parts of fused layers, and address them in different ways.
    """
    first = operands[0]
    if all(_targets(one) == _targets(first) and one.places == first.places for one in operands):
        return _targets(first)
    if not any(place.part for one in operands for place in one.places):
        modules = sorted({place.address for one in operands for place in one.places})
        return {"modified_modules": modules, "exclude_modules": [], "common_structure": False}
    ways = [(one.document.get("common_structure"), one.document.get("exclude_modules")) for one in operands]
    named = [one.document.get("modified_modules") for one in operands]
    if any(way != ways[0] for way in ways) or not all(named):
        msg = (
            f"{first.label} and {operands[-1].label} act on parts of fused layers and address them in different ways. Train them with the same "
            "modified_modules."
        )
        raise ConfigError(msg)
    union = list(dict.fromkeys(name for names in named for name in names or ()))
    return {**_targets(first), "modified_modules": union}


def _targets(operand: Operand) -> dict[str, Any]:
    return {key: operand.document[key] for key in _TARGETS if key in operand.document}


def common_facts(operands: Sequence[Operand]) -> dict[str, Any]:
    """Return the facts about the backbone that all deltas state, or that some state and none contradicts."""
    facts: dict[str, Any] = {}
    for key in ("backbone_class", "backbone_checkpoint_name", "backbone_revision"):
        values = {str(one.document[key]) for one in operands if one.document.get(key)}
        if len(values) == 1:
            facts[key] = values.pop()
    return facts


def unfrozen(operands: Sequence[Operand]) -> list[str]:
    """Return every name in `unfrozen_modules` of the deltas, in order."""
    return list(dict.fromkeys(name for one in operands for name in one.document.get("unfrozen_modules") or ()))
