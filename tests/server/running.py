"""Hubs for tests: in this process, behind a real socket, and as the command."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from deltahub.server.connections import GuardedProtocol

LONG = 60.0  # seconds after which a server that was told to end never will


class _Server(uvicorn.Server):
    """A server that ends at once when it is told to, and not at the next tenth of a second."""

    async def main_loop(self) -> None:
        self.end, self.loop = asyncio.Event(), asyncio.get_running_loop()
        await self.on_tick(0)
        await self.end.wait()
        self.should_exit = True

    def stop(self) -> None:
        """End it, from any thread."""
        self.should_exit = True  # before it began
        if hasattr(self, "loop"):
            self.loop.call_soon_threadsafe(self.end.set)


@contextlib.contextmanager
def listening(app: ASGIApp, http: type[GuardedProtocol] = GuardedProtocol) -> Iterator[tuple[str, int]]:
    """Serve an application from a thread of this process, and say where."""
    config = uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        timeout_graceful_shutdown=5,  # for clients that keep their connection and never come back
    )
    server = _Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield address
        finally:
            server.stop()
            thread.join(LONG)
            assert not thread.is_alive(), "the server did not end"
