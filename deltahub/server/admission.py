"""Limits on the connections of a process: in total, per address, and a small reserve that serves health checks only."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from deltahub.server.authentication import FREE
from deltahub.server.errors import Refusal

CONNECTIONS: Final = 1024  # per process
_RESERVE: Final = 32  # additional ones, for /healthz and /readyz
_LOG_EVERY: Final = 60.0  # seconds


class Connections:
    """The open connections of a process, counted by client address.

    Args:
        most: the maximum number of connections served.
        proxies: comma-separated addresses and networks of proxies, or ``"*"``; a single proxy may use all connections.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, most: int = CONNECTIONS, proxies: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._share = most, max(1, most // 4)
        self._proxies = proxies or ""
        self._clock = clock
        self._open: Counter[str] = Counter()
        self._reserve: OrderedDict[asyncio.Transport, None] = OrderedDict()
        self._logged = -_LOG_EVERY

    def enter(self, address: str, transport: asyncio.Transport) -> bool:
        """Count a new connection from an address.

        Returns:
            Whether it is served. Otherwise it may only ask for health checks, and is closed when too many newer ones arrive.
        """
        total = self._open.total()
        if total < self._most and (self._open[address] < self._share or self._is_proxy(address)):
            self._open[address] += 1
            return True
        self._log(address, total)
        self._reserve[transport] = None
        if len(self._reserve) > _RESERVE:
            self._reserve.popitem(last=False)[0].abort()
        return False

    def leave(self, address: str, *, served: bool, transport: asyncio.Transport) -> None:
        """Remove a connection that has ended."""
        if not served:
            self._reserve.pop(transport, None)
            return
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]

    def _is_proxy(self, address: str) -> bool:
        return any(_holds(part.strip(), address) for part in self._proxies.split(",") if part.strip())

    def _log(self, address: str, total: int) -> None:
        now = self._clock()
        if now - self._logged < _LOG_EVERY:
            return
        self._logged = now
        logging.getLogger("deltahub.server").warning(
            "There are %s connections, %s of them from %s: this process takes %s, and %s from one address. More are turned away.",
            *(total, self._open[address], address or "somewhere", self._most, self._share),
        )


def _holds(proxies: str, address: str) -> bool:
    """Return whether an address equals a proxy's address or is in its network."""
    if proxies in ("*", address):
        return True
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(proxies, strict=False)
    except ValueError:
        return False


class HealthOnly:
    """ASGI application that answers only health checks, for a process whose connections are used up.

    Args:
        app: the application that answers them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward health checks; refuse any other request."""
        if scope["type"] == "http" and scope["path"] not in FREE:
            message = (
                "This hub has as many connections as it takes, or as many of yours. Close some, or repeat in a moment."
            )
            headers = {"Retry-After": "5", "Connection": "close"}
            await Refusal(503, message, headers=headers).answer()(scope, receive, send)
            return
        await self._app(scope, receive, send)
