"""Middleware that limits the cost of a request: its headers, its body, and the time to receive the body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub.server.errors import Refusal
from deltahub.server.settings import Settings

_PRINTABLE: Final = re.compile(rb"[!-~]*")
# Bodies streamed to disk; all others are held in memory, so a repository name must not be able to match these.
_FILE: Final = re.compile(r"/[^/]+/[^/]+\.git/info/lfs/objects/.+")
_COMMIT: Final = re.compile(r"/api/models/[^/]+/[^/]+/commit/[^/]+")
_LONGEST_PATH: Final = 8192  # bytes, including the query
_SLOWEST: Final = 1024.0  # minimum average bytes per second of a body


class Limits:
    """Middleware that refuses requests that are too large or too slow.

    Args:
        app: the application that handles the requests.
        settings: `max_file`, `max_commit`, `max_body`, `max_header_count` and `idle`.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the head of a request, and pass it on with a body counted while it arrives."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self._most(scope)
        try:
            self._check_head(scope, most)
        except Refusal as refusal:
            await refusal.answer()(scope, receive, send)
            return
        body = _Body(receive, most, self._settings.idle)
        await self.app(scope, body.receive, send)

    def _most(self, scope: Scope) -> int:
        """Return the maximum body size of a request in bytes."""
        if scope["method"] == "PUT" and _FILE.fullmatch(scope["path"]):
            return self._settings.max_file
        if scope["method"] == "POST" and _COMMIT.fullmatch(scope["path"]):
            return self._settings.max_commit
        return self._settings.max_body

    def _check_head(self, scope: Scope, most: int) -> None:
        if len(scope["headers"]) > self._settings.max_header_count:
            message = (
                f"The request has {len(scope['headers'])} headers, and {self._settings.max_header_count} may come."
            )
            raise Refusal(431, message)
        target = (scope.get("raw_path") or b"") + scope["query_string"]
        if not _PRINTABLE.fullmatch(target):
            raise Refusal(400, "The address holds bytes that must be quoted, such as %20 for a space.")
        if len(target) > _LONGEST_PATH:
            raise Refusal(414, f"The address is longer than {_LONGEST_PATH} bytes. Ask for less at once.")
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(not value.isdigit() or len(value) > 18 for value in lengths):
            raise Refusal(400, "The header Content-Length is not a number of bytes.")
        if any(int(value) > most for value in lengths):
            raise too_large(most)


class _Body:
    """A request body that is counted as it arrives, and times out when hardly anything comes."""

    def __init__(self, receive: Receive, most: int, idle: float) -> None:
        self._receive = receive
        self._most, self._idle = most, idle
        self._count = 0
        self._has_more = True
        self._start: float | None = None

    async def receive(self) -> Message:
        if not self._has_more:
            return await self._receive()  # waits for the end of the connection, however long the answer takes
        loop = asyncio.get_running_loop()
        self._start = self._start or loop.time()
        latest = self._start + self._idle + self._count / _SLOWEST
        try:
            async with asyncio.timeout_at(min(loop.time() + self._idle, latest)):
                message = await self._receive()
        except TimeoutError as error:
            took = loop.time() - self._start
            text = (
                f"Only {self._count:,} bytes of the body came in {took:.1f} seconds. Repeat over a faster connection."
            )
            raise Refusal(408, text, headers=_CLOSE) from error
        self._has_more = message["type"] == "http.request" and message.get("more_body", False)
        self._count += len(message.get("body", b""))
        if self._count > self._most:
            raise too_large(self._most, headers=_CLOSE)
        return message


_CLOSE: Final = {"Connection": "close"}


def too_large(most: int, headers: Mapping[str, str] | None = None) -> Refusal:
    """Return the answer to a body that is too large.

    Closing a connection while its client is sending resets it, and the client never sees the answer. So the rest of the announced
    body is discarded, for as long as a head may take.
    """
    message = f"The request is larger than the {most:,} bytes that this hub takes at this address. Send less at once."
    return Refusal(413, message, headers=headers)
