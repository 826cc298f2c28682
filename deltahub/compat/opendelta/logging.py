"""OpenDelta's functions for logging, over the logger of DeltaHub."""

from __future__ import annotations

from functools import partial
from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, WARN, WARNING, Logger, getLogger

from deltahub.log import LOGGER

__all__ = ["CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "WARN", "WARNING", "get_logger"]


def get_logger(name: str | None = None) -> Logger:
    """Return a logger by name; DeltaHub's own without one."""
    return LOGGER if name is None else getLogger(name)


get_verbosity = LOGGER.getEffectiveLevel
set_verbosity = LOGGER.setLevel
set_verbosity_debug = partial(set_verbosity, DEBUG)
set_verbosity_info = partial(set_verbosity, INFO)
set_verbosity_warning = partial(set_verbosity, WARNING)
set_verbosity_error = partial(set_verbosity, ERROR)
