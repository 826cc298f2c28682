"""Requests as raw as they come: any bytes in any place, straight into an application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from starlette.types import ASGIApp, Message, Scope

T = TypeVar("T")


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

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for something that runs where the application does."""
        return self.begin(work).result(60)

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something there, and go on."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def send(
        self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> Answer:
        """Send a request and wait for the whole answer."""
        return self.run(_send(self._app, method, target, headers, body))


def scope_of(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> Scope:
    """The head of a request as an application gets it."""
    path, _, query = target.partition(b"?")
    return {
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


async def _send(
    app: ASGIApp, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
) -> Answer:
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

    await app(scope_of(method, target, headers), receive, take)
    return answer
