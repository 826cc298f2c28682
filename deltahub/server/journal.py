"""What a hub writes down: a line of JSON for each request, and for each change; never a secret."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from deltahub.plain_text import redacted
from deltahub.registry import stamps

ACCESS: Final = logging.getLogger("deltahub.server.access")
AUDIT: Final = logging.getLogger("deltahub.server.audit")
FACTS: Final = "facts"  # the attribute of a record that holds its fields


class JsonLines(logging.Formatter):
    """One line of JSON for each record, with a record's facts as fields, and all secrets blacked out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {"time": stamps.now(), "level": record.levelname.lower(), "log": record.name}
        facts = getattr(record, FACTS, None)
        fields |= facts if isinstance(facts, dict) else {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return redacted(json.dumps(fields, default=str))


class Appending(logging.FileHandler):
    """A log to which several processes append: each line is written at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", delay=False)


def set_up(access: Path | None = None, audit: Path | None = None, *, quiet: bool = False) -> None:
    """Send the logs of this process where they belong.

    Args:
        access: a file for requests; by default stderr.
        audit: a file for changes; by default stderr.
        quiet: write requests that went well nowhere, unless there is a file for them.
    """
    plain = logging.StreamHandler(sys.stderr)
    for name in ("deltahub", "uvicorn"):
        _only(logging.getLogger(name), plain, logging.INFO)
    _only(logging.getLogger("uvicorn.error"), plain, logging.WARNING)
    _only(ACCESS, Appending(access) if access else plain, logging.WARNING if quiet and not access else logging.INFO)
    _only(AUDIT, Appending(audit) if audit else plain, logging.INFO)
    for logger in (logging.getLogger("deltahub"), ACCESS, AUDIT):
        for handler in logger.handlers:
            handler.setFormatter(JsonLines())


def _only(logger: logging.Logger, handler: logging.Handler, level: int) -> None:
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
