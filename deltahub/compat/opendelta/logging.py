"""OpenDelta's functions for logging, over the logger of DeltaHub."""

from __future__ import annotations

from logging import CRITICAL, DEBUG, ERROR, FATAL, INFO, WARN, WARNING, Logger, getLogger

from deltahub.log import LOGGER

__all__ = ["CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "WARN", "WARNING", "get_logger"]


def get_logger(name: str | None = None) -> Logger:
    """Return a logger by name; DeltaHub's own without one."""
    return LOGGER if name is None else getLogger(name)


def get_verbosity() -> int:
    """Return the level of DeltaHub's logger."""
    return LOGGER.getEffectiveLevel()


def set_verbosity(verbosity: int) -> None:
    """Set the level of DeltaHub's logger."""
    LOGGER.setLevel(verbosity)


def set_verbosity_debug() -> None:
    """Show everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Show information, warnings and errors."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Show warnings and errors."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Show only errors."""
    set_verbosity(ERROR)
