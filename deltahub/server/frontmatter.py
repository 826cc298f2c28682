"""The front matter of a model card: what the author says of a model, as YAML between two lines of ``---``."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

import yaml
from yaml.composer import ComposerError
from yaml.events import AliasEvent

LARGEST: Final = 64 << 10  # bytes of a card that are looked at
_HEAD: Final = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Values and nothing else: aliases could make a few lines into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias."""
        if self.check_event(AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, "aliases are not read", event.start_mark)
        return super().compose_node(parent, index)


def front_matter(card: str) -> dict[str, Any]:
    """What a card says, as JSON can hold it; empty if it has no front matter.

    Raises:
        ValueError: it is no YAML, or no mapping.
    """
    found = _HEAD.match(card[:LARGEST])
    if not found:
        return {}
    try:
        value = yaml.load(found[1], Loader=_PlainLoader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        msg = " ".join(str(error).split())[:300]
        raise ValueError(msg) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        msg = "expected keys with values"
        raise ValueError(msg)  # noqa: TRY004  (the text is wrong, not the call)
    return {str(key): _plain(entry) for key, entry in value.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and value - value != 0:  # infinite, or no number
        return str(value)
    if isinstance(value, dt.date):
        return value.isoformat()
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def texts(value: Any) -> list[str]:
    """A text, or the texts of a list."""
    found = value if isinstance(value, list) else [value]
    return [entry for entry in found if isinstance(entry, str) and entry]
