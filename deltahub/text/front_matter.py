"""Front matter of a model card: metadata by the author as YAML between two lines of ``---``.

The result contains only values that JSON and any client can represent. YAML allows more: a few lines with aliases can expand to
gigabytes, a number may have more digits than can be printed, and a text may hold half of a surrogate pair.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
from typing import Any, ClassVar, Final

LARGEST: Final = 64 << 10  # bytes of a card to parse
_HEAD: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_DEEPEST: Final = 40  # nesting levels; more would also be slow to parse
_LARGEST_NUMBER: Final = 1 << 64
_BOOLEAN: Final = "tag:yaml.org,2002:bool"


@functools.cache
def _loader() -> Any:
    """Build the YAML loader, which accepts only true and false as booleans, as YAML 1.2 does: ``no`` is Norwegian, not false.

    The C parser takes milliseconds where the Python one takes seconds while holding a thread of the hub and the GIL.
    """
    import yaml  # late import: 20 ms, and most commands read no card

    safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(safe):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar = {
            character: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
            for character, resolvers in safe.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(_BOOLEAN, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
    return Loader


def front_matter(card: str) -> dict[str, Any]:
    """Return the front matter of a card as JSON-compatible values; empty without front matter.

    Raises:
        ValueError: it is not valid YAML, or not a mapping.
    """
    match = _HEAD.match(card[:LARGEST])
    return read_yaml(match[1]) if match else {}


def read_yaml(text: str) -> dict[str, Any]:
    """Parse a YAML mapping into JSON-compatible values.

    Raises:
        ValueError: the text is not YAML accepted here, or not a mapping.
    """
    import yaml  # late import, as in _loader

    try:
        _refuse_bombs(text)
        value = yaml.load(text, Loader=_loader())  # noqa: S506  (a SafeLoader)
        mapping = _plain({} if value is None else value)
    except Exception as error:  # constructors of a SafeLoader raise various types: KeyError, IndexError, ...
        msg = " ".join(str(error).split())[:300] or "a value is not what its tag says"
        raise ValueError(msg) from error
    if not isinstance(mapping, dict):
        msg = "expected keys with values"
        raise ValueError(msg)  # noqa: TRY004  (the text is wrong, not the call)
    return mapping


def _refuse_bombs(text: str) -> None:
    """Reject aliases and deep nesting before any value is constructed."""
    import yaml  # late import, as in _loader

    depth = 0
    for event in yaml.parse(text, Loader=_loader()):
        if isinstance(event, yaml.AliasEvent):
            msg = "aliases are not read"
            raise ValueError(msg)  # noqa: TRY004  (the text is wrong, not the call)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            msg = f"it nests more than {_DEEPEST} levels deep"
            raise ValueError(msg)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value - value != 0:  # infinite or NaN
        return str(value)
    if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
        return hex(value)
    if isinstance(value, dt.date):
        return value.isoformat()
    return value if value is None or isinstance(value, int | float | bool) else _text(value)


def _text(value: Any) -> str:
    return str(value).encode(errors="replace").decode()


def texts(value: Any) -> list[str]:
    """Return a string, or the strings of a list, as a list."""
    entries = value if isinstance(value, list) else [value]
    return [entry for entry in entries if isinstance(entry, str) and entry]
