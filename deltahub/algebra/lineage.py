"""Verification of lineage: a delta is computed again from its parents and compared with what is there.

The parents are found by their digests: among given folders, in the cache, in the registries, or under the names they were pulled by. The
same tensors give the same bytes. Sums are the same on every machine; a reduction of the rank may differ in the last digits with
another release of torch, and then the updates are compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from deltahub.algebra.combine import combined
from deltahub.algebra.factors import norm, weighted_sum
from deltahub.algebra.methods import Method, Recipe
from deltahub.algebra.opening import open_operands
from deltahub.algebra.operand import Operand
from deltahub.algebra.resize import resized
from deltahub.algebra.result import Computed, save_tensors
from deltahub.algebra.scale import scaled
from deltahub.checkpoint.checkpoint import WEIGHTS
from deltahub.errors import ConfigError, DeltaHubError, NotFoundError
from deltahub.files.atomic import scratch, sha256_file
from deltahub.hub.hub import Hub
from deltahub.reference import Digest, Reference

SAME: Final = "same bytes"
ROUNDED: Final = "same within rounding"
OTHER: Final = "other content"
_ROUNDING: Final = 1e-5  # relative difference of an update that another library of linear algebra can make


@dataclass(frozen=True)
class LineageCheck:
    """The result of verifying a lineage.

    Attributes:
        operation: the operation, e.g. ``"combine"``.
        parameters: its parameters.
        parents: the digest of each parent, and where it was found.
        status: ``"same bytes"``, ``"same within rounding"`` or ``"other content"``.
        detail: the difference, as a clause; empty for the same bytes.
    """

    operation: str
    parameters: Mapping[str, Any]
    parents: tuple[tuple[str, str], ...]
    status: str
    detail: str = ""


def verify_lineage(delta: str | os.PathLike[str], parents: Sequence[str | os.PathLike[str]] = ()) -> LineageCheck:
    """Compute a delta again from its parents, and compare.

    Args:
        delta: a folder, a reference or a link.
        parents: folders or references that may be the parents, for those that neither a registry nor the cache has.

    Raises:
        ConfigError: the delta has no lineage that can be computed again.
        NotFoundError: a parent is not found.
        IntegrityError: the delta or a parent is damaged.
    """
    operand = open_operands([delta])[0]
    lineage = operand.document.get("lineage")
    if not lineage or not operand.document.get("parents"):
        how = f" It was made by {lineage['operation']} from whole models: run that again." if lineage else ""
        msg = f"{operand.label} was not computed from other deltas, so there is no lineage to verify.{how}"
        raise ConfigError(msg)
    with ExitStack() as folders:
        given = open_operands(parents)
        found = [folders.enter_context(_parent(entry, given)) for entry in operand.document["parents"]]
        computed = _computed([parent for parent, _ in found], lineage)
        status, detail = _compared(operand, computed)
        places = tuple((parent.parent["digest"], place) for parent, place in found)
    return LineageCheck(lineage["operation"], lineage["parameters"], places, status, detail)


def _computed(parents: list[Operand], lineage: Mapping[str, Any]) -> Computed:
    """Run an operation again.

    Raises:
        ConfigError: this version has no such operation, or the parameters are invalid.
    """
    parameters = dict(lineage["parameters"])
    heads = parameters.pop("heads", None)
    check_hash = bool(parameters.pop("check_hash", True))
    try:
        match lineage["operation"]:
            case "combine":
                recipe = Recipe.checked(count=len(parents), **parameters)
                return combined(parents, recipe, heads=heads, check_hash=check_hash)
            case "resize":
                return resized(parents[0], parameters.get("rank"), parameters.get("energy"))
            case "scale":
                return scaled(parents[0], float(parameters["factor"]), heads)
    except (TypeError, KeyError) as error:
        msg = f"The lineage cannot be read by this version: {error}. Update deltahub."
        raise ConfigError(msg) from error
    msg = (
        f"The lineage names the operation {lineage['operation']!r}, which this version does not know. Update deltahub."
    )
    raise ConfigError(msg)


def _compared(operand: Operand, computed: Computed) -> tuple[str, str]:
    """Return the status of a delta beside the same one computed again, and the difference as a clause."""
    document = operand.document
    options = [key for key, value in computed.options.items() if document.get(key) != value]
    record = computed.record(operand.fingerprint.version) if operand.fingerprint else computed.record()
    if (record.hash if record else None) != document.get("backbone_hash"):
        options.append("backbone_hash")
    if options:
        return OTHER, f"its config has another {', '.join(sorted(options))}"
    with scratch() as folder:
        save_tensors(computed.tensors, folder / WEIGHTS)
        if sha256_file(folder / WEIGHTS)[0] == document["files"][WEIGHTS]["sha256"]:
            return SAME, ""
        shapes = {name: tuple(tensor.shape) for name, tensor in computed.tensors.items()}
        expected = {name: entry.shape for name, entry in operand.table.items()}
        odd = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        if odd:
            return OTHER, f"{odd[0]} does not have the computed shape"
        worst, name = max(_differences(operand, replace(operand, file=folder / WEIGHTS, stored_names={})))
    if worst <= _ROUNDING and not _is_exact(operand.document["lineage"]):
        allowed = f"{_ROUNDING:.0e} is allowed, as another release of torch rounds a decomposition differently"
        return ROUNDED, f"the largest relative difference is {worst:.1e}; {allowed}"
    return OTHER, f"{name} differs by {worst:.1e} of its norm"


def _is_exact(lineage: Mapping[str, Any]) -> bool:
    """Return whether an operation has the same bytes everywhere, because it decomposes nothing."""
    return bool(lineage["operation"] == "scale" or lineage["parameters"].get("method") == Method.CAT)


def _differences(operand: Operand, again: Operand) -> Iterator[tuple[float, str]]:
    """Yield the relative difference of each update and of each other tensor, with its name."""
    is_lora = operand.delta_type == "lora"
    for place in operand.places if is_lora else ():
        first, second = operand.factors(place), again.factors(place)
        yield _relative(norm(weighted_sum([first, second], [1.0, -1.0])), norm(first)), place.stream
    for name in operand.trained if is_lora else operand.table:
        values = [one.tensor(name).double() for one in (operand, again)]
        yield _relative(float((values[0] - values[1]).norm()), float(values[0].norm())), name


def _relative(difference: float, size: float) -> float:
    return difference / size if size else (float("inf") if difference else 0.0)


@contextmanager
def _parent(entry: Mapping[str, str], given: Sequence[Operand]) -> Iterator[tuple[Operand, str]]:
    """Provide a parent, and say where it was found.

    Raises:
        NotFoundError: it is nowhere.
    """
    for operand in given:
        if _is(operand, entry):
            yield operand, operand.label
            return
    digest, hub = Digest(entry["digest"]), Hub.open()
    if (folder := hub.cache.folder(digest)).is_dir():
        with suppress(DeltaHubError):  # a damaged copy is fetched again
            operand = open_operands([folder])[0]
            if _is(operand, entry):
                yield operand, "the cache"
                return
    if operand_by_name := _by_name(entry):
        yield operand_by_name, entry["name"]
        return
    for registry in hub.registries.values() if "format" not in entry else ():
        if registry.holds(digest):
            with scratch() as place:
                for file in registry.manifest(digest).files:
                    registry.fetch(file, place / file.path)
                yield open_operands([place])[0], registry.name
            return
    name = f"{entry['name']}, " if "name" in entry else ""
    raise NotFoundError(f"The parent {name}{digest}", ("the cache", *hub.registries))


def _by_name(entry: Mapping[str, str]) -> Operand | None:
    """Return a parent that still has the name it was pulled by; None if there is none."""
    if "name" not in entry:
        return None
    with suppress(DeltaHubError):
        name = Reference.parse(entry["name"])
        exact = name if "format" in entry else name.at(entry["digest"])
        operand = open_operands([str(exact)])[0]
        if _is(operand, entry):
            return operand
    return None


def _is(operand: Operand, entry: Mapping[str, str]) -> bool:
    return all(operand.parent.get(key) == entry.get(key) for key in ("digest", "config", "format"))
