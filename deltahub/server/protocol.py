"""HTTP connections that nobody can hold open by doing nothing, and of which nobody can have all.

Uvicorn waits for as long as it takes for the head of a request, and for its answer to be read. Here both have an end.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from deltahub.server.addresses import network_of
from deltahub.server.admission import Connections, HealthOnly

HEAD: Final = 20.0  # seconds for the head of a request, from the opening of the connection or its first byte
STALLED: Final = 60.0  # seconds for which an answer may wait for its reader
_FAREWELL: Final = 1.0  # seconds for an idle TLS connection to be closed by both sides


class GuardedProtocol(H11Protocol):
    """Uvicorn's connection with two more clocks, counted by the address of its other side."""

    admission: Connections = Connections()

    head: float = HEAD
    stalled: float = STALLED

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._address, self._served = "", True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for a request."""
        super().connection_made(transport)
        self._address = network_of(self.client[0] if self.client else "")
        self._served = self.admission.enter(self._address, transport)
        if not self._served:
            self.app = HealthOnly(self.app)
        # asyncio does so only for sockets that were made for TCP by name; without it, small answers wait 40 ms for each other.
        if (line := transport.get_extra_info("socket")) is not None:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = self.loop.call_later(self.head, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Take what came; a request that has only begun must be complete in time."""
        super().data_received(data)
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way and self._head:
            self._head.cancel()
            self._head = None
        elif not under_way and not self._head:
            self._head = self.loop.call_later(self.head, self.transport.abort)

    def pause_writing(self) -> None:
        """More of an answer waits than the connection takes: its reader must go on in time."""
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(self.stalled, self.transport.abort)

    def resume_writing(self) -> None:
        """The reader goes on."""
        super().resume_writing()
        if self._stall:
            self._stall.cancel()
            self._stall = None

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing comes any more; one whose last answer is not read either is cut."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """End an idle connection now, others after their answer; TLS waits only briefly for the other side to agree."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(_FAREWELL, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and count it no more."""
        self.admission.leave(self._address, served=self._served, transport=self.transport)
        for timer in (self._head, self._stall):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
