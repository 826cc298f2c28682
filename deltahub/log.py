"""The library's logger: invisible characters in quoted text are escaped before any handler gets a record."""

from __future__ import annotations

import logging
from typing import Final

from deltahub.text.visible import visible


class _VisibleRecords(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = visible(record.getMessage()), ()
        return True


LOGGER: Final = logging.getLogger("deltahub")
LOGGER.addFilter(_VisibleRecords())
