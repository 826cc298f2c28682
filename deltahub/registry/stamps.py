"""The time and the author of a change."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime, timedelta
from typing import Final

_AHEAD: Final = timedelta(days=1)  # the largest tolerated clock skew
_UNSEEN: Final = timedelta(days=100)  # the longest plausible wait for a collection after the grace period


def now() -> str:
    """Return the current time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def counted_from(since: str, now: str, grace: timedelta) -> str:
    """Return the start of a grace period: the recorded time, or now if a clock must have been wrong.

    A time in the future would make the entry wait for years, and one years ago, whichever clock is wrong, would expire it at once.
    In both cases the period starts anew.

    Args:
        since: the recorded time, ISO 8601 in UTC; likewise `now`.
    """
    try:
        waited = datetime.fromisoformat(now) - datetime.fromisoformat(since)
    except (ValueError, TypeError):
        return now
    return since if -_AHEAD <= waited <= grace + _UNSEEN else now


def is_due(since: str, now: str, grace: timedelta) -> bool:
    """Check whether a grace period is over."""
    return datetime.fromisoformat(now) - datetime.fromisoformat(since) >= grace


def text(typed: str) -> str:
    """Return a typed text with '?' for each byte that was not valid UTF-8."""
    return typed.encode(errors="replace").decode()


def author() -> str:
    """Return the author of a change: DELTAHUB_AUTHOR, or the user of this machine."""
    if name := os.environ.get("DELTAHUB_AUTHOR"):
        return text(name)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no entry for its user
        return "unknown"
