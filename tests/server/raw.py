"""Requests as raw as they come: any bytes in any place, straight into an application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from starlette.types import ASGIApp, Message


@dataclass
class Answer:
    """What came back.

    Attributes:
        status: of the answer; 0 if there was none.
        headers: lower-case names and values.
        body: all of it.
    """

    status: int = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


class Wire:
    """A way to an application. It has a thread of its own: in that of the tests, a browser's event loop may be running.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def send(
        self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> Answer:
        """Send a request and wait for the whole answer."""
        return asyncio.run_coroutine_threadsafe(_send(self._app, method, target, headers, body), self._loop).result(60)


async def _send(
    app: ASGIApp, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> Answer:
    path, _, query = target.partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), *headers],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    answer, sent = Answer(), False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the client stays until it has the answer
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def take(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status, answer.headers = message["status"], tuple(message.get("headers", ()))
        answer.body += message.get("body", b"")

    await app(scope, receive, take)
    return answer
