"""JSON documents: canonical form, validation by schema, and checksum.

The schemas are the only description of the files that DeltaHub writes. An object is addressed by its digest; a document is mutable, so it contains its digest: the sha256 of its bytes without the checksum's
own. Editing a document by hand breaks it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import reprlib
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

_DEPTH: Final = 64  # maximum nesting of objects and arrays
_NESTING: Final = frozenset({dict, list})  # the types of parsed objects and arrays
_DEEP: Final = "it nests too deeply"
_MARKED: Final = "it begins with a byte-order mark; save it as UTF-8 without one"
_DIGITS: Final = 300  # of a whole number: every float can hold so many
_LONG_NUMBER: Final = re.compile(rb"\d{301}")  # it may be inside a string

_PLACE: Final = 200  # maximum characters of a file's text in a message
_BOUNDS: Final = {
    "minimum": "at least",
    "maximum": "at most",
    "exclusiveMinimum": "more than",
    "exclusiveMaximum": "less than",
    "enum": "one of",
    "const": "exactly",
}
_SIZES: Final = {
    "maxItems": "at most {} items",
    "maxLength": "at most {} characters",
    "maxProperties": "at most {} keys",
}
_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80

if TYPE_CHECKING:
    from fastjsonschema import JsonSchemaValueException


def parse(data: bytes) -> Any:
    """Parse JSON that may be damaged or hostile.

    Args:
        data: UTF-8 without a byte-order mark, which RFC 8259 forbids and other readers refuse.

    Raises:
        ValueError: it is not JSON, nests too deeply, has a duplicate key, a number out of the range of a float,
            or half a surrogate pair.
    """
    if data.startswith(BOM_UTF8):
        raise ValueError(_MARKED)
    try:
        document = json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_whole_number if _LONG_NUMBER.search(data) else None,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError(_DEEP) from None
    _refuse_deep(document)
    if b"\\u" in data:
        json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        msg = "it has a name twice in one object"
        raise ValueError(msg)
    return members


def _refuse_constant(text: str) -> None:
    msg = f"{text} is not a JSON number"
    raise ValueError(msg)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        msg = f"the number {text:.40} is too large"
        raise ValueError(msg)
    return number


def _whole_number(text: str) -> int:
    if len(text) > _DIGITS:
        msg = f"the number {text:.40}... is too large"
        raise ValueError(msg)
    return int(text)


def _refuse_deep(document: Any) -> None:
    level = [document] if type(document) in _NESTING else []
    for _ in range(_DEPTH):
        if not level:
            return
        level = [
            child
            for item in level
            for child in (item.values() if type(item) is dict else item)
            if type(child) in _NESTING
        ]
    raise ValueError(_DEEP)


@cache
def load_schema(name: str) -> dict[str, Any]:
    """Load the schema called `name`, e.g. ``"manifest.v1"``."""
    from importlib.resources import files  # late import: a list of deltas needs no schema

    schema: dict[str, Any] = json.loads(files("deltahub.schemas").joinpath(f"{name}.json").read_text("utf-8"))
    return schema


def compiled(schema: dict[str, Any]) -> Callable[[Any], Any]:
    """Compile a schema to a validator for `problem`."""
    import fastjsonschema  # late import: only for commands that validate

    validate: Callable[[Any], Any] = fastjsonschema.compile(schema)
    return validate


@cache
def _validator(name: str) -> Callable[[Any], Any]:
    return compiled(load_schema(name))


def problem(document: object, schema: str | Callable[[Any], Any]) -> str | None:
    """Return the first problem of a document, as a clause; None if it is valid.

    Args:
        document: parsed JSON.
        schema: the schema's name, e.g. ``"manifest.v1"``, or what `compiled` returned.
    """
    from fastjsonschema import JsonSchemaValueException

    try:
        (_validator(schema) if isinstance(schema, str) else schema)(document)
    except JsonSchemaValueException as error:
        return _clause(error)
    return None


def parse_checked(data: bytes, schema: str) -> tuple[Any, str | None]:
    """Parse JSON and check it by a schema; return it with the first problem, as a clause, or None if it is valid.

    Args:
        data: see `parse`.
        schema: the name of the schema.

    Returns:
        The document, None if it is not JSON; and its problem.
    """
    try:
        document = parse(data)
    except ValueError as error:
        return None, str(error)
    return document, problem(document, schema)


def shown(value: object) -> str:
    """Format a value from a file for a message, shortened if it is long or deep."""
    return _SHOWN.repr(value)


def _clause(error: JsonSchemaValueException) -> str:
    name = error.name or "data"
    place = name.removeprefix("data").removeprefix(".") or "the document"
    place = place if len(place) <= _PLACE else f"{place[:_PLACE]}..."
    rule_value, value = error.rule_definition, error.value
    if error.rule == "required":
        return f"{place} lacks {', '.join(repr(key) for key in rule_value if key not in value)}"
    if error.rule == "type":
        return f"{place} must be of type {rule_value if isinstance(rule_value, str) else ' or '.join(rule_value)}, got {shown(value)}"
    if error.rule == "propertyNames":
        pattern, longest = rule_value.get("pattern", "").replace("$", r"\Z"), rule_value.get("maxLength", math.inf)
        odd_key = next((key for key in value if len(key) > longest or not re.search(pattern, key)), "")
        return f"{place} must not have the key {shown(odd_key)}"
    if error.rule in _BOUNDS:
        return f"{place} must be {_BOUNDS[error.rule]} {rule_value!r}, got {shown(value)}"
    if error.rule in _SIZES:
        return f"{place} must have {_SIZES[error.rule].format(rule_value)}, and has {len(value)}"
    return f"{place}{error.message.removeprefix(name):.{_PLACE}}"


def canonical_json(document: Any) -> bytes:
    """Serialise JSON with sorted keys and no blanks, so that equal documents give equal bytes."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def with_checksum(document: Mapping[str, Any]) -> bytes:
    """Serialise a document with its checksum.

    Args:
        document: JSON without ``"checksum"``, with a key that sorts after it; no value before that key may be a mapping with an empty
            ``"checksum"``.
    """
    empty = canonical_json({**document, "checksum": ""})
    checksum = hashlib.sha256(empty.replace(_member(""), b"", 1)).hexdigest()
    return empty.replace(_member(""), _member(checksum), 1)


def parse_stored(data: bytes, schema: str) -> tuple[Any, str | None]:
    """Parse a stored document; return it with the first problem, as a clause, or None if it is valid.

    Args:
        data: its bytes.
        schema: the name of its schema, which requires a ``"checksum"``.
    """
    document, wrong = parse_checked(data, schema)
    return document, wrong or _checksum_problem(data, document)


def _checksum_problem(data: bytes, document: Mapping[str, Any]) -> str | None:
    """Check the checksum in a document; return the problem as a clause, or None."""
    recorded = document["checksum"]
    checksum = hashlib.sha256(data.replace(_member(recorded), b"", 1)).hexdigest()
    return None if checksum == recorded else f"bytes that do not match their recorded checksum {recorded}"


def _member(checksum: str) -> bytes:
    return f'"checksum":"{checksum}",'.encode()
