"""Middleware for the access log, the audit log and metrics.

The logs are JSON lines without secrets, one per request and per change. Prometheus metrics count requests, their duration, and bytes.
Several processes of a hub share their counters if `PROMETHEUS_MULTIPROC_DIR` names a folder before they start; `deltahub serve
--workers` sets it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
import traceback
import uuid
from pathlib import Path
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub.registry import stamps
from deltahub.server.access import ANONYMOUS, CALLER
from deltahub.server.addresses import address_of
from deltahub.server.errors import Refusal
from deltahub.text.visible import redacted

ACCESS: Final = logging.getLogger("deltahub.server.access")
AUDIT: Final = logging.getLogger("deltahub.server.audit")
FACTS: Final = "facts"  # attribute of a log record that holds its fields


class JsonLines(logging.Formatter):
    """Formatter that writes each record as a line of JSON, with its facts as fields and secrets redacted."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as a line of JSON."""
        fields: dict[str, Any] = {"time": stamps.now(), "level": record.levelname.lower(), "log": record.name}
        facts = getattr(record, FACTS, None)
        fields |= facts if isinstance(facts, dict) else {"message": record.getMessage()}
        if record.exc_info and record.exc_info[1]:
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return redacted(json.dumps(fields, default=str))


class AppendHandler(logging.FileHandler):
    """Log file that several processes append to: each line is written at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", delay=False)


def set_up(access: Path | None = None, audit: Path | None = None, *, quiet: bool = False) -> None:
    """Configure the log handlers of this process.

    Args:
        access: file for requests; by default stderr.
        audit: file for changes; by default stderr.
        quiet: do not log successful requests, unless they go to a file.
    """
    plain = logging.StreamHandler(sys.stderr)
    for name in ("deltahub", "uvicorn"):
        _only(logging.getLogger(name), plain, logging.INFO)
    _only(logging.getLogger("uvicorn.error"), plain, logging.WARNING)
    _only(ACCESS, AppendHandler(access) if access else plain, logging.WARNING if quiet and not access else logging.INFO)
    _only(AUDIT, AppendHandler(audit) if audit else plain, logging.INFO)
    for logger in (logging.getLogger("deltahub"), ACCESS, AUDIT):
        for handler in logger.handlers:
            handler.setFormatter(JsonLines())


def _only(logger: logging.Logger, handler: logging.Handler, level: int) -> None:
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)  # seconds
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Counters of an application. Routes are labelled by their pattern, so that no repository name appears."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "deltahub_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "deltahub_request_seconds",
            "Seconds from a request's head to the end of its answer.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.received = Counter("deltahub_received_bytes", "Bytes of bodies that came in.", registry=self.registry)
        self.sent = Counter("deltahub_sent_bytes", "Bytes of bodies that went out.", registry=self.registry)
        self.active = Gauge(
            "deltahub_active_requests", "Requests under way.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.catalogue_down = Gauge(
            "deltahub_catalogue_down",
            "Processes whose searches are answered without the database of the catalogue.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def count(self, method: str, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one request."""
        self.requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        self.received.inc(received)
        self.sent.inc(sent)

    def page(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus's text format, and its media type."""
        registry = self.registry
        if os.environ.get(SHARED):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST


NOTES: Final = "deltahub.notes"  # key of a route's facts for the audit log
_NO_ANSWER: Final = 499  # the client disconnected
_LONGEST: Final = 200  # characters of the user agent
_ID: Final = re.compile(r"[A-Za-z0-9_.=;:-]{1,128}")  # of a request, by its client
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# POST routes that change nothing, matched by route: the path holds names chosen by users.
_ASKING: Final = ("/preupload/", "/paths-info/", "/validate-yaml", "/objects/batch", "/verify")


def note(request: HTTPConnection, **facts: object) -> None:
    """Record facts for the audit log, e.g. the changed repository and its new commit."""
    request.scope.setdefault(NOTES, {}).update(facts)


class TelemetryMiddleware:
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
        exchange = _Exchange(receive, send, _named_id(scope))
        scope[NOTES] = {}
        start = time.perf_counter()
        with self._metrics.active.track_inprogress():
            try:
                await self.app(scope, exchange.receive, exchange.send)
            except Exception:
                logging.getLogger("deltahub.server").exception("Request %s failed", exchange.named or exchange.id)
                if exchange.status != _NO_ANSWER:
                    raise  # the response has started: the connection is closed
                message = f"The hub failed. Its log says why, under request {exchange.named or exchange.id}."
                await Refusal(500, message).answer()(scope, exchange.receive, exchange.send)
            finally:
                self._write(scope, exchange, time.perf_counter() - start)

    def _write(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.count(scope["method"], route, exchange.status, seconds, exchange.received, exchange.sent)
        caller = scope.get(CALLER, ANONYMOUS)
        facts: dict[str, Any] = {
            "request": exchange.id,
            **({"client_request": exchange.named} if exchange.named else {}),
            "address": address_of(scope),
            "caller": caller.name or None,
            "method": scope["method"],
            "path": scope["path"],  # without the query, which may hold a signature
            "status": exchange.status,
        }
        agent = Headers(scope=scope).get("user-agent", "")[:_LONGEST]
        measures = {"seconds": round(seconds, 4), "received": exchange.received, "sent": exchange.sent, "agent": agent}
        ACCESS.log(_level(exchange.status), "", extra={FACTS: {**facts, **measures}})
        if scope["method"] not in _READING and not any(part in route for part in _ASKING):
            AUDIT.info("", extra={FACTS: {**facts, **scope[NOTES]}})


class _Exchange:
    """Counts and status of a request and its response.

    Args:
        named: the id that the client gave the request; empty for none.
    """

    def __init__(self, receive: Receive, send: Send, named: str) -> None:
        self._receive, self._send, self.named = receive, send, named
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
            MutableHeaders(raw=message.setdefault("headers", [])).setdefault("X-Request-Id", self.named or self.id)
        self.sent += len(message.get("body", b""))
        await self._send(message)


def _named_id(scope: Scope) -> str:
    """Return the id that the client gave a request, if it is short and plain; else an empty text."""
    headers = Headers(scope=scope)
    named = headers.get("x-request-id") or headers.get("x-amzn-trace-id") or ""
    return named if _ID.fullmatch(named) else ""


def _level(status: int) -> int:
    return logging.ERROR if status >= 500 else logging.INFO
