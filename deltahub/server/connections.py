"""HTTP connections with timeouts for idle clients, and with limits per address.

Uvicorn waits indefinitely for the head of a request, and for the client to read the response. Here both time out.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from deltahub.server.addresses import network_of
from deltahub.server.admission import Connections, HealthOnly

HEAD: Final = 20.0  # seconds for the head of a request, from the opening of the connection or its first byte
STALLED: Final = 60.0  # seconds that a response may wait for its reader
_FAREWELL: Final = 1.0  # seconds for both sides to close an idle TLS connection


class GuardedProtocol(H11Protocol):
    """Uvicorn's connection with two more timeouts, counted by client address."""

    admission: Connections = Connections()

    head: float = HEAD
    stalled: float = STALLED

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._address, self._served = "", True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timeout for a request."""
        super().connection_made(transport)
        self._address = network_of(self.client[0] if self.client else "")
        self._served = self.admission.enter(self._address, transport)
        if not self._served:
            self.app = HealthOnly(self.app)
        # asyncio does so only for sockets created explicitly for TCP; without it, small responses wait 40 ms for each other.
        if (line := transport.get_extra_info("socket")) is not None:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = self.loop.call_later(self.head, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Process received bytes; a request that has begun must be complete in time."""
        super().data_received(data)
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way and self._head:
            self._head.cancel()
            self._head = None
        elif not under_way and not self._head:
            self._head = self.loop.call_later(self.head, self.transport.abort)

    def pause_writing(self) -> None:
        """Start the timeout for the reader when a response exceeds the write buffer."""
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(self.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timeout when the reader continues."""
        super().resume_writing()
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; abort it if its last response has not been read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Close an idle connection now, others after their response; TLS waits only briefly for the other side."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(_FAREWELL, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers, and uncount the connection."""
        self.admission.leave(self._address, served=self._served, transport=self.transport)
        for timer in (self._head, self._stall):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
