"""When and by whom a change is made."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime


def now() -> str:
    """This moment, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


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
