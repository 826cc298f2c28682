"""Holding a document against its JSON Schema; the schemas are the one description of what DeltaHub writes."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

Document = Mapping[str, Any]


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema called `name`, e.g. ``"manifest.v1"``."""
    schema: dict[str, Any] = json.loads(files("deltahub.schemas").joinpath(f"{name}.json").read_text("utf-8"))
    return schema


@cache
def _validator(name: str) -> Validator:
    from jsonschema import Draft202012Validator, validators  # late: commands that validate nothing start without it

    types = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number})
    strict = validators.extend(Draft202012Validator, {"pattern": _pattern}, type_checker=types)
    return strict(load_schema(name))


def _is_integer(_checker: object, value: object) -> bool:
    """Python's own: 8.0 is an integer to JSON Schema, but no size of a tensor."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: object, value: object) -> bool:
    """Not NaN or infinity, which JSON cannot hold."""
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


def _pattern(_validator: object, pattern: str, value: object, _schema: object) -> Iterator[ValidationError]:
    """As JSON Schema means it: Python's `$` would let a newline pass at the end."""
    from jsonschema import ValidationError

    if isinstance(value, str) and not re.search(pattern.replace("$", r"\Z"), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def problems(document: object, name: str) -> tuple[str, ...]:
    """What is wrong with a document, one clause each; empty if nothing is.

    Args:
        document: parsed JSON.
        name: the schema's name, e.g. ``"manifest.v1"``.
    """
    found: list[ValidationError] = list(_validator(name).iter_errors(document))
    # A property whose value is wrong counts as unevaluated too; that would only be said twice.
    real = [error for error in found if error.validator != "unevaluatedProperties"] or found
    return tuple(dict.fromkeys(_clause(error) for error in sorted(real, key=lambda error: list(map(str, error.path)))))


def _clause(error: ValidationError) -> str:
    place = ".".join(str(part) for part in error.absolute_path) or "the document"
    wanted: Any = error.validator_value
    if error.validator == "required" and isinstance(error.instance, Mapping):
        missing = [key for key in wanted if key not in error.instance]
        return f"{place} lacks {', '.join(map(repr, missing))}"
    if error.validator == "type":
        kinds = wanted if isinstance(wanted, str) else " or ".join(wanted)
        return f"{place} must be of type {kinds}, got {error.instance!r}"
    if error.validator == "minimum":
        return f"{place} must be at least {wanted}, got {error.instance!r}"
    if error.validator == "exclusiveMaximum":
        return f"{place} must be less than {wanted}, got {error.instance!r}"
    if error.validator in ("enum", "const"):
        return f"{place} must be {wanted!r}, got {error.instance!r}"
    return f"{place}: {error.message}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A half-sentence that names the known word most like `word`, or else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}."
