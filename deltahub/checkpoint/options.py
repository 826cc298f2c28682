"""JSON Schema of a config class, derived from the types of its fields.

A field ``rank: Annotated[int, Limits(minimum=1)] = 8`` gives ``{"type": "integer", "minimum": 1, ...}``, and
``mode: Literal["sum", "mean"] = "sum"`` gives ``{"enum": ["sum", "mean"]}``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from deltahub.errors import ConfigError

_LARGEST: Final = sys.float_info.max  # JSON has larger integers, which a float cannot hold
_PLAIN: Final[Mapping[Any, Mapping[str, Any]]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    float: {"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST},
    str: {"type": "string", "maxLength": 1024},
    NoneType: {"type": "null"},
}


class Limits:
    """Limits of an option's values beside its type, for `Annotated`.

    Args:
        keywords: keywords of JSON Schema, e.g. ``minimum=0, exclusiveMaximum=1``.
    """

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords


Count = Annotated[int, Limits(minimum=1, maximum=1 << 20)]
Index = Annotated[int, Limits(minimum=0, maximum=1 << 20)]
Positive = Annotated[float, Limits(exclusiveMinimum=0)]
Text = Annotated[str, Limits(minLength=1)]


@cache
def options_of(config_class: type) -> Mapping[str, Mapping[str, Any]]:
    """Return the schema of each field of a config class.

    Raises:
        ConfigError: a type has no schema.
    """
    try:
        hints = get_type_hints(config_class, include_extras=True)
    except NameError as error:
        msg = f"The types of {config_class.__name__} cannot be read: {error}. Import them at run time too."
        raise ConfigError(msg) from error
    return {
        field.name: _schema(hints[field.name], f"{config_class.__name__}.{field.name}")
        for field in fields(config_class)
    }


def _schema(hint: Any, place: str) -> dict[str, Any]:
    """Return the schema of a type.

    Args:
        place: the field, for messages.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = [extra.keywords for extra in arguments[1:] if isinstance(extra, Limits)]
        schema = _schema(arguments[0], place)
        for keywords in limits:
            schema = _limited(schema, keywords)
        return schema
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, UnionType) and (choices := _choices(arguments, place)):
        return choices
    if origin in (list, tuple, Sequence) and arguments[1:] in ((), (...,)):
        return {"type": "array", "maxItems": 100_000, "items": _schema(arguments[0], place)}
    if origin in (dict, Mapping) and arguments[0] is str:
        return {
            "type": "object",
            "maxProperties": 20_000,
            "additionalProperties": {} if arguments[1] is Any else _schema(arguments[1], place),
        }
    msg = (
        f"{place} is of type {hint}, which has no JSON Schema here. Use bool, int, float, str, Literal, T | None, Sequence[T] or "
        "Mapping[str, T]; limits go into Annotated[T, Limits(...)]."
    )
    raise ConfigError(msg)


def _choices(hints: Sequence[Any], place: str) -> dict[str, Any] | None:
    """Return the schema of one of several types: T | None, or ``bool | float``; None for others."""
    if len(hints) == 2 and NoneType in hints:
        schema = _schema(next(hint for hint in hints if hint is not NoneType), place)
        nullable = {"enum": [*schema["enum"], None]} if "enum" in schema else {"type": [schema["type"], "null"]}
        return {**schema, **nullable}
    if any(hint not in (bool, int, float) for hint in hints):
        return None
    keywords = {key: value for hint in hints for key, value in _PLAIN[hint].items()}
    return {**keywords, "type": [_PLAIN[hint]["type"] for hint in hints]}


def _limited(schema: Mapping[str, Any], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Add limits to a schema; an exclusive limit takes the place of an inclusive one, and an enumeration that of a type."""
    if "enum" in keywords:
        return dict(keywords)
    replaced = {key.removeprefix("exclusive").lower() for key in keywords if key.startswith("exclusive")}
    return {key: value for key, value in schema.items() if key not in replaced} | dict(keywords)
