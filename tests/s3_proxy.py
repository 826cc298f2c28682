"""A server between a store and an S3 server that breaks what it is told to break."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Answer = tuple[int, list[tuple[str, str]], bytes]  # status, headers, body


@dataclass
class Exchange:
    """One request on its way to the server; a fault acts on it before, instead of or after the answer."""

    handler: BaseHTTPRequestHandler
    upstream: Callable[[Exchange], Answer]
    body: bytes
    headers: dict[str, str]

    @property
    def method(self) -> str:
        return self.handler.command

    @property
    def path(self) -> str:
        return self.handler.path

    def forward(self) -> Answer:
        """Send the request on, and read the whole answer."""
        return self.upstream(self)

    def respond(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None) -> None:
        """Answer; with `sent`, only so many bytes of the body and then the end of the connection."""
        self.handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.handler.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
        if status != 204:
            self.handler.send_header("Content-Length", length if self.method == "HEAD" else str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body[:sent])
        if sent is not None:
            self.reset()

    def reset(self) -> None:
        """End the connection as a crashed peer does."""
        self.handler.wfile.flush()
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handler.connection.shutdown(socket.SHUT_RD)
        self.handler.close_connection = True
        self.handler.connection.close()


def over_http(url: str) -> Callable[[Exchange], Answer]:
    """The way to a server elsewhere."""

    def sent(exchange: Exchange) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(exchange.method, exchange.path, skip_host=True, skip_accept_encoding=True)
            for name, value in exchange.headers.items():
                connection.putheader(name, value)
            connection.endheaders(exchange.body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    return sent


Fault = Callable[[Exchange], None]


def status(number: int, code: str) -> Fault:
    """Answer with an error of S3."""
    body = f"<Error><Code>{code}</Code><Message>As asked</Message></Error>".encode()
    return lambda exchange: exchange.respond(number, [("Content-Type", "application/xml")], body)


def reset(exchange: Exchange) -> None:
    """End the connection before the request reaches the server."""
    exchange.reset()


def lose(exchange: Exchange) -> None:
    """Let the server do it, and lose its answer."""
    exchange.forward()
    exchange.reset()


def cut(sent: int) -> Fault:
    """Send so many bytes of the answer's body, and end the connection."""
    return lambda exchange: exchange.respond(*exchange.forward(), sent=sent)


def without(*names: str) -> Fault:
    """What a server does that ignores these headers."""

    def stripped(exchange: Exchange) -> None:
        exchange.headers = {name: value for name, value in exchange.headers.items() if name.lower() not in names}
        exchange.respond(*exchange.forward())

    return stripped


@dataclass
class Rule:
    """A fault, and which requests it meets.

    Attributes:
        method: of those requests.
        words: what their path holds.
        times: how many of them; None for all.
        skip: how many go through first.
    """

    fault: Fault
    method: str = "PUT"
    words: str = ""
    times: int | None = 1
    skip: int = 0

    def meets(self, exchange: Exchange) -> bool:
        """Whether this request is one of them; counts it if so."""
        if exchange.method != self.method or self.words not in exchange.path:
            return False
        if self.skip:
            self.skip -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return self.times is None or self.times >= 0


@dataclass
class Proxy:
    """Forwards to an S3 server; the first rule that meets a request has its way with it."""

    upstream: Callable[[Exchange], Answer]
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    def breaks(self, fault: Fault, **conditions: Any) -> None:
        """Add a rule."""
        self.rules.append(Rule(fault, **conditions))

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        exchange = Exchange(handler, self.upstream, body, dict(handler.headers.items()))
        with self._lock:
            self.requests.append((exchange.method, exchange.path))
            fault = next((rule.fault for rule in self.rules if rule.meets(exchange)), None)
        try:
            if fault:
                fault(exchange)
            else:
                exchange.respond(*exchange.forward())
        except OSError:  # either side is gone
            with contextlib.suppress(OSError):
                exchange.reset()


@contextlib.contextmanager
def proxied(upstream: str | Callable[[Exchange], Answer]) -> Iterator[Proxy]:
    """A proxy on a port of its own, before the server at a URL or the one that a call is."""
    proxy = Proxy(over_http(upstream) if isinstance(upstream, str) else upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # what was written is on its way before a connection is cut

        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("do_"):
                return lambda: proxy.handle(self)
            raise AttributeError(name)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # a store connects many times at once

        def handle_error(self, *_: object) -> None:
            """A client that ends its connection is no news."""

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
