"""Logs of the hub: a JSON line per request and per change, without secrets."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from deltahub.registry import stamps
from deltahub.text.visible import redacted

ACCESS: Final = logging.getLogger("deltahub.server.access")
AUDIT: Final = logging.getLogger("deltahub.server.audit")
FACTS: Final = "facts"  # attribute of a log record that holds its fields


class JsonLines(logging.Formatter):
    """Formatter that writes each record as a line of JSON, with its facts as fields and secrets redacted."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a line of JSON."""
        fields: dict[str, Any] = {"time": stamps.now(), "level": record.levelname.lower(), "log": record.name}
        facts = getattr(record, FACTS, None)
        fields |= facts if isinstance(facts, dict) else {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return redacted(json.dumps(fields, default=str))


class Appending(logging.FileHandler):
    """Log file that several processes append to: each line is written at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", delay=False)


def set_up(access: Path | None = None, audit: Path | None = None, *, quiet: bool = False) -> None:
    """Configure the log handlers of this process.

    Args:
        access: file for requests; by default stderr.
        audit: file for changes; by default stderr.
        quiet: do not log successful requests, unless they go to a file.
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
