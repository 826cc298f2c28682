"""Holding a document against its JSON Schema; the schemas are the one description of what DeltaHub writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastjsonschema import JsonSchemaValueException


def parse(data: bytes, *, unique: bool = False) -> Any:
    """Read JSON that may be damaged or hostile.

    Args:
        unique: refuse a name that stands twice in one object; else the last one counts.

    Raises:
        ValueError: it is not JSON, nests too deeply, or holds a number or half a character that JSON does not know.
    """
    try:
        document = json.loads(data, parse_constant=_refuse_constant, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        msg = "it nests too deeply"
        raise ValueError(msg) from None
    if b"\\u" in data:
        json.dumps(document, ensure_ascii=False).encode()  # an escaped half of a surrogate pair has no bytes
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a name stands twice in it"
        raise ValueError(msg)
    return found


def _refuse_constant(text: str) -> None:
    msg = f"{text} is no JSON number"
    raise ValueError(msg)


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The schema called `name`, e.g. ``"manifest.v1"``."""
    from importlib.resources import files  # late: a list of deltas needs no schema

    schema: dict[str, Any] = json.loads(files("deltahub.schemas").joinpath(f"{name}.json").read_text("utf-8"))
    return schema


@cache
def _validator(name: str) -> Callable[[Any], Any]:
    import fastjsonschema  # late: commands that validate nothing start without it

    validate: Callable[[Any], Any] = fastjsonschema.compile(load_schema(name))
    return validate


def problem(document: object, name: str) -> str | None:
    """The first thing that is wrong with a document, as a clause; None if nothing is.

    Args:
        document: parsed JSON.
        name: the schema's name, e.g. ``"manifest.v1"``.
    """
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator(name)(document)
    except JsonSchemaValueException as error:
        return _clause(error)
    return None


def _clause(error: JsonSchemaValueException) -> str:
    name = error.name or "data"
    place = name.removeprefix("data").removeprefix(".") or "the document"
    wanted, found = error.rule_definition, error.value
    if error.rule == "required":
        return f"{place} lacks {', '.join(repr(key) for key in wanted if key not in found)}"
    if error.rule == "type":
        return f"{place} must be of type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}, got {found!r}"
    if error.rule == "propertyNames":
        odd = next(key for key in found if not re.search(wanted["pattern"].replace("$", r"\Z"), key))
        return f"{place} must not have the key {odd!r}"
    words = {"minimum": "at least", "exclusiveMaximum": "less than", "enum": "one of", "const": "exactly"}
    if error.rule in words:
        return f"{place} must be {words[error.rule]} {wanted!r}, got {found!r}"
    return f"{place}{error.message.removeprefix(name)}"
