"""Middleware for the access log, the audit log and metrics."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub.server.access import ANONYMOUS, CALLER
from deltahub.server.addresses import address_of
from deltahub.server.errors import Refusal
from deltahub.server.journal import ACCESS, AUDIT, FACTS
from deltahub.server.metrics import Metrics

NOTES: Final = "deltahub.notes"  # key of a route's facts for the audit log
_NO_ANSWER: Final = 499  # the client disconnected
_LONGEST: Final = 200  # characters of the user agent
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# POST routes that change nothing, matched by route: the path holds names chosen by users.
_ASKING: Final = ("/preupload/", "/paths-info/", "/validate-yaml", "/objects/batch", "/verify")


def note(request: HTTPConnection, **facts: object) -> None:
    """Record facts for the audit log, e.g. the changed repository and its new commit."""
    request.scope.setdefault(NOTES, {}).update(facts)


class Observing:
    """Middleware that writes the access and audit logs and counts requests, outside any middleware that may refuse one.

    Args:
        app: the application that handles the requests.
        metrics: the counters.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log its outcome."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = _Seen(receive, send)
        scope[NOTES] = {}
        start = time.perf_counter()
        with self._metrics.active.track_inprogress():
            try:
                await self.app(scope, seen.receive, seen.send)
            except Exception:
                logging.getLogger("deltahub.server").exception("Request %s failed", seen.id)
                if seen.status != _NO_ANSWER:
                    raise  # the response has started: the connection is closed
                message = f"The hub failed. Its log says why, under request {seen.id}."
                await Refusal(500, message).answer()(scope, seen.receive, seen.send)
            finally:
                self._write(scope, seen, time.perf_counter() - start)

    def _write(self, scope: Scope, seen: _Seen, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.count(scope["method"], route, seen.status, seconds, seen.received, seen.sent)
        caller = scope.get(CALLER, ANONYMOUS)
        facts: dict[str, Any] = {
            "request": seen.id,
            "address": address_of(scope),
            "caller": caller.name or None,
            "method": scope["method"],
            "path": scope["path"],  # without the query, which may hold a signature
            "status": seen.status,
        }
        agent = Headers(scope=scope).get("user-agent", "")[:_LONGEST]
        more = {"seconds": round(seconds, 4), "received": seen.received, "sent": seen.sent, "agent": agent}
        ACCESS.log(_level(seen.status), "", extra={FACTS: {**facts, **more}})
        if scope["method"] not in _READING and not any(part in route for part in _ASKING):
            AUDIT.info("", extra={FACTS: {**facts, **scope[NOTES]}})


class _Seen:
    """Counts and status of one request and its response."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.id = uuid.uuid4().hex
        self.status = _NO_ANSWER
        self.received = self.sent = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(raw=message.setdefault("headers", [])).setdefault("X-Request-Id", self.id)
        self.sent += len(message.get("body", b""))
        await self._send(message)


def _level(status: int) -> int:
    return logging.ERROR if status >= 500 else logging.INFO
