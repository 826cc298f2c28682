"""Browser support beyond the API: session cookies, and errors as pages.

A session cookie counts only for requests that change nothing, so another site cannot use it to change anything.
"""

from __future__ import annotations

import json
import logging
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub.server.authentication import SESSION
from deltahub.server.pages.rendering import own_address, page, redirect
from deltahub.server.state import state_of

COOKIE: Final = "deltahub_session"
_HOST: Final = "__Host-"  # prefix of a cookie that other hosts and plain HTTP can neither set nor read
SIGN_IN: Final = "/-/sign-in"
_SAFE: Final = ("GET", "HEAD")
_LARGEST: Final = 64 << 10  # bytes of an error's body
_FAILED: Final = "The hub failed to create this page. Its log has the reason; ask its administrator."


class Browsers:
    """Middleware around all that answers requests.

    Args:
        app: the application that handles the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Authenticate the caller by the session cookie, and show errors as pages to browsers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        by_cookie = _use_session(scope)
        answer = _Answer(scope, send, by_cookie=by_cookie, as_page=_wants_page(scope))
        try:
            await self.app(scope, receive, answer.send)
        except Exception:
            if answer.started or not answer.as_page:
                raise
            logging.getLogger("deltahub.server").exception("A page failed")
            await page(HTTPConnection(scope), "error.html", 500, message=_FAILED)(scope, receive, send)
            return
        await answer.finish(receive)


class _Answer:
    """Response wrapper that forwards messages, but buffers an error to show it as a page."""

    def __init__(self, scope: Scope, send: Send, *, by_cookie: bool, as_page: bool) -> None:
        self._scope, self._send = scope, send
        self._by_cookie = by_cookie
        self.as_page = as_page
        self.started = False
        self._error_head: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        """Forward or buffer one message of the response."""
        if message["type"] == "http.response.start":
            headers = Headers(raw=message["headers"])
            is_json = headers.get("content-type", "").startswith("application/json")
            if message["status"] >= 400 and self.as_page and is_json:
                self._error_head = message
                return
            self.started = True
        elif self._error_head is not None:
            self._body = (self._body + message.get("body", b""))[:_LARGEST]
            return
        await self._send(message)

    async def finish(self, receive: Receive) -> None:
        """Send a buffered error as a page."""
        if self._error_head is None:
            return
        request, status = HTTPConnection(self._scope), self._error_head["status"]
        headers = Headers(raw=self._error_head["headers"])
        if self._by_cookie and status == 401 and "www-authenticate" in headers:  # the token is no longer valid
            sign_in = redirect(request, f"{SIGN_IN}?refused=1&next={quote(own_address(request), safe='')}")
            drop_session(request, sign_in)
            await sign_in(self._scope, receive, self._send)
            return
        answer = page(request, "error.html", status, message=_message(self._body))
        if "retry-after" in headers:
            answer.headers["Retry-After"] = headers["retry-after"]
        await answer(self._scope, receive, self._send)


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return _FAILED


def _wants_page(scope: Scope) -> bool:
    """Return whether the client is a browser that does not call the API."""
    accepted = Headers(scope=scope).get("accept", "")
    return "text/html" in accepted and not scope["path"].startswith("/api/")


def _use_session(scope: Scope) -> bool:
    """Let a session cookie authenticate a request that changes nothing.

    Returns:
        Whether it does.
    """
    path = scope["path"]
    if scope["method"] not in _SAFE or path.startswith((SIGN_IN, "/-/static/")):
        return False
    request = HTTPConnection(scope)
    secret = session_of(request) if "authorization" not in request.headers else ""
    if secret:
        scope[SESSION] = secret
    return bool(secret)


def session_of(request: HTTPConnection) -> str:
    """Return the content of the session cookie; empty without one."""
    try:
        morsel = SimpleCookie(request.headers.get("cookie", "")).get(_name(request))
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def keep_session(request: HTTPConnection, answer: Response, secret: str, seconds: int) -> None:
    """Set the session cookie, for this host only and hidden from scripts."""
    name, secure = _name(request), is_secure(request)
    answer.set_cookie(name, secret, max_age=seconds, httponly=True, samesite="strict", secure=secure)


def drop_session(request: HTTPConnection, answer: Response) -> None:
    """Delete the session cookie."""
    answer.delete_cookie(_name(request), httponly=True, samesite="strict", secure=is_secure(request))


def is_secure(request: HTTPConnection) -> bool:
    """Return whether clients reach the hub over TLS."""
    return state_of(request).base_url(request).startswith("https:")


def _name(request: HTTPConnection) -> str:
    return f"{_HOST}{COOKIE}" if is_secure(request) else COOKIE
