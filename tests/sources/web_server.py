"""A web server of a folder, in a thread, that answers as a test wants it to."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

Answer = Callable[["Handler"], bool]  # True if it has answered, False for the server to go on as usual


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET with files, as a good server does: ETag, Content-Length, Range and If-Range."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # what was written is on its way before a connection is cut
    server: Server

    def do_GET(self) -> None:
        self.server.site.requests.append((self.path, dict(self.headers)))
        for rule in list(self.server.site.rules):
            if rule(self):
                return
        self.file()

    def file(self, *, etag: str | None = "strong", ranges: bool = True) -> None:
        path = self.server.site.root / unquote(urlsplit(self.path).path).lstrip("/")
        if not path.is_file():
            self.say(404, b"nothing")
            return
        data = path.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"' if etag == "strong" else etag
        range_header = self.headers.get("Range") if ranges else None
        if range_header and self.headers.get("If-Range", tag) == tag:
            first, _, last = range_header.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) if last else len(data) - 1, len(data) - 1)
            if start >= len(data):
                self.say(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
            self.say(206, data[start : end + 1], headers | ({"ETag": tag} if tag else {}))
            return
        self.say(200, data, {"ETag": tag} if tag else {})

    def say(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        """Answer; `sent` bytes of the body, and then hang up, if it is given."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body if sent is None else body[:sent])
        if sent is not None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def drip(self) -> None:
        """Answer with a byte now and then, until the test is over."""
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.over.wait(0.01):
                self.wfile.write(b" ")
                self.wfile.flush()
        self.close_connection = True

    def drip_headers(self) -> None:
        """Answer with a line of the head now and then, until the test is over."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(OSError):
            while not self.server.over.wait(0.01):
                self.wfile.write(b"X-More: 1\r\n")
                self.wfile.flush()
        self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@dataclass
class Site:
    """What a server serves, and what it was asked.

    Attributes:
        requests: path and headers of each request.
        rules: answer first.
    """

    root: Path
    url: str = ""
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    rules: list[Answer] = field(default_factory=list)

    def answers(self, ending: str, *answers: Callable[[Handler], object] | None) -> None:
        """Answer requests for a file in these ways, one after the other; None as usual, and so are those after the last."""
        waiting = list(answers)

        def rule(handler: Handler) -> bool:
            if not waiting or not urlsplit(handler.path).path.endswith(ending):
                return False
            answer = waiting.pop(0)
            if answer is None:
                return False
            answer(handler)
            return True

        self.rules.append(rule)

    def paths(self) -> list[str]:
        """What was asked for."""
        return [path for path, _ in self.requests]


class Server(http.server.ThreadingHTTPServer):
    """The server of a site."""

    daemon_threads = True
    site: Site
    over: threading.Event

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients hang up as they like."""


@contextlib.contextmanager
def serving(root: Path, host: str = "127.0.0.1") -> Iterator[Site]:
    """Serve a folder until the end of the block."""
    server = Server((host, 0), Handler)
    server.over = threading.Event()
    server.site = Site(root, f"http://{host}:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.site
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
