"""When and by whom a change is made."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime, timedelta
from typing import Final

_AHEAD: Final = timedelta(days=1)  # by which clocks may differ
_UNSEEN: Final = timedelta(days=100)  # beyond its time of grace, in which nobody collected what was due


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def counted_from(since: str, now: str, grace: timedelta) -> str:
    """From when on the time of grace of what was noted at a time counts: from then, or from now if a clock must have been wrong.

    What was noted in the future would wait for years, and what was noted years ago by a wrong clock, or seems so to one, would go
    at once. Its time begins anew.

    Args:
        since: when it was noted, ISO 8601 in UTC, as `now` is.
    """
    try:
        waited = datetime.fromisoformat(now) - datetime.fromisoformat(since)
    except (ValueError, TypeError):
        return now
    return since if -_AHEAD <= waited <= grace + _UNSEEN else now


def is_due(since: str, now: str, grace: timedelta) -> bool:
    """Whether a time of grace is over."""
    return datetime.fromisoformat(now) - datetime.fromisoformat(since) >= grace


def text(typed: str) -> str:
    """What was typed, with '?' for bytes of it that were no UTF-8."""
    return typed.encode(errors="replace").decode()


def author() -> str:
    """Who changes something: DELTAHUB_AUTHOR, or the user of this machine."""
    if found := os.environ.get("DELTAHUB_AUTHOR"):
        return text(found)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no entry for its user
        return "unknown"
