"""HTTP server of the picker: local only, with a secret token in its address and a few endpoints.

    GET   /<token>/            the page                POST  /<token>/preview    preview a choice
    GET   /<token>/<file>      its script and styles   POST  /<token>/submit     end with a choice
    GET   /<token>/tree        the backbone's tree     POST  /<token>/cancel     end without a choice
    GET   /<token>/open        stays open as long as the page does

A request without the token, from a page of another origin (CSRF), or with a host name other than this machine's own (as after DNS
rebinding) gets 403.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from deltahub.engine.drawing.html import STATIC as DRAWING
from deltahub.errors import DeltaHubError
from deltahub.picker.session import Session

HOST: Final = "127.0.0.1"
LARGEST: Final = 4 << 20  # maximum bytes of a request: the names of a hundred thousand modules
_STATIC: Final = Path(__file__).parent / "static"
_OWN_NAMES: Final = ("127.0.0.1", "localhost")
_FILES: Final = {
    "": (_STATIC / "picker.html", "text/html; charset=utf-8"),
    "palette.css": (DRAWING / "palette.css", "text/css; charset=utf-8"),
    "picker.css": (_STATIC / "picker.css", "text/css; charset=utf-8"),
    "picker.js": (_STATIC / "picker.js", "text/javascript; charset=utf-8"),
    "rows.js": (_STATIC / "rows.js", "text/javascript; charset=utf-8"),
    "items.js": (_STATIC / "items.js", "text/javascript; charset=utf-8"),
    "icon.svg": (_STATIC / "icon.svg", "image/svg+xml"),
}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address is a secret
    "X-Content-Type-Options": "nosniff",
}


class PickerServer(ThreadingHTTPServer):
    """HTTP server for one session.

    Args:
        session: the session to serve.
        port: a local port; 0 for any free one.

    Raises:
        OSError: the port is taken or not allowed.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = os.name != "nt"  # on Windows it would let two servers share a port

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        super().__init__((HOST, port), _Handler)

    @property
    def url(self) -> str:
        """The page's address; it grants access to the choice."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless the page closed the connection during a response."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """A request answered with an error status only."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: PickerServer
    server_version = "DeltaHub"
    sys_version = ""
    timeout = 30.0  # seconds to receive a request

    def do_GET(self) -> None:
        """Send the page, its files, the tree, or the stream that stays open."""
        self._guarded(self._get)

    def do_POST(self) -> None:
        """Run a preview, submit or cancel."""
        self._guarded(self._post)

    def _guarded(self, answer: Callable[[str], None]) -> None:
        try:
            answer(self._route())
        except _Refused as refused:
            self._send(refused.status, "text/plain; charset=utf-8", f"{refused}\n".encode())
        except DeltaHubError as error:
            self._send_json({"refusal": str(error)}, HTTPStatus.BAD_REQUEST)

    def _route(self) -> str:
        """Check the host, the origin and the token, and return the path below the token."""
        host = self.headers.get("Host", "")
        origin = self.headers.get("Origin")
        if urlsplit(f"//{host}").hostname not in _OWN_NAMES or origin not in (None, f"http://{host}"):
            raise _Refused(HTTPStatus.FORBIDDEN, "This server accepts requests from its own page on this machine only.")
        token, _, rest = urlsplit(self.path).path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "Open the complete URL that was printed, including its secret part.")
        return rest

    def _get(self, route: str) -> None:
        if route == "tree":
            self._send_json(self.server.session.tree)
        elif route == "open":
            self._stay_open()
        elif route in _FILES:
            path, kind = _FILES[route]
            self._send(HTTPStatus.OK, kind, path.read_bytes())
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "Not found.")

    def _post(self, route: str) -> None:
        session = self.server.session
        if route == "cancel":
            session.cancel(self._send_json)
        elif route == "preview":
            self._send_json(session.preview(*self._choice()))
        elif route == "submit":
            session.submit(*self._choice(), self._send_json)
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "Not found.")

    def _choice(self) -> tuple[list[str], str]:
        """Read the names and the delta type from a request's body."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "The request needs a Content-Length header.")
        if int(length) > LARGEST:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The request is too large: at most {LARGEST} bytes are accepted."
            )
        try:
            body = json.loads(self.rfile.read(int(length)))
            names, delta_type = body["names"], body["type"]
        except (ValueError, KeyError, TypeError, RecursionError):
            names, delta_type = None, None
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise _Refused(HTTPStatus.BAD_REQUEST, 'Expected {"names": [...], "type": "..."}.')
        return names, str(delta_type)

    def _stay_open(self) -> None:
        """Hold the connection until the page closes it or the session is over."""
        session = self.server.session
        with session.page():
            self._start(HTTPStatus.OK, "text/event-stream")
            self.end_headers()
            self.connection.settimeout(0.2)
            while not session.over.is_set():
                try:
                    if not self.connection.recv(1):
                        return
                except TimeoutError:
                    continue
                except OSError:
                    return

    def _send_json(self, data: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, "application/json", json.dumps(data).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self._start(status, kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _start(self, status: HTTPStatus, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for header, value in _HEADERS.items():
            self.send_header(header, value)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Log nothing: the terminal belongs to the waiting program."""
