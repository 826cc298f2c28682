"""The limit of open files of a process: each connection needs one."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final

_OTHERS: Final = 512  # files of the store, logs, incoming uploads
_LOG_EVERY: Final = 60.0  # seconds
_LOGGER: Final = logging.getLogger("deltahub.server")


def connections_for(connections: int) -> int:
    """Raise the limit of open files as far as allowed; return the number of connections it permits.

    Args:
        connections: connections, if the limit permits.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors = connections + _OTHERS
    if 0 <= soft < descriptors and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < 0 or soft >= descriptors:
        return connections
    possible = max(soft - _OTHERS, soft // 2)
    _LOGGER.warning(
        "This process may have %s files open, so it takes %s connections instead of %s. Raise the limit to %s: ulimit -n, "
        "or LimitNOFILE of systemd.",
        *(soft, possible, connections, descriptors),
    )
    return possible


class AcceptErrors:
    """Logs at most once a minute that connections wait for file descriptors; asyncio logs a traceback for each attempt."""

    def __init__(self) -> None:
        self._logged = -_LOG_EVERY

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error outside any task: see `asyncio.loop.set_exception_handler`."""
        if "socket.accept()" not in str(context.get("message")):
            loop.default_exception_handler(context)
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY:
            self._logged = now
            _LOGGER.error(
                "New connections wait: %s. Raise the limit of open files of this process.", context.get("exception")
            )
