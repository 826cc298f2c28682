"""Middleware for browsers: host allow-list, CSRF protection and security headers."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub.server.errors import Refusal
from deltahub.server.settings import Settings

# Pushed files must never be rendered as pages of the hub; the pages themselves set their own policy.
_HEADERS: Final = {
    "Cache-Control": "private, no-cache",  # no shared cache may keep what one caller may see
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_HSTS: Final = "max-age=31536000"


class SecurityHeaders:
    """Middleware that adds security headers to all responses that do not set them.

    Args:
        app: the application that handles the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and add the headers to its response."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", _HSTS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class HostAllowList:
    """Middleware that refuses unknown host names, which protects against DNS rebinding.

    Args:
        app: the application that handles the requests.
        settings: `hosts`, the names of this hub; empty for any.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._hosts = frozenset(name.lower() for name in settings.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its host name is allowed."""
        if scope["type"] == "http" and self._hosts and _host(scope) not in self._hosts:
            message = (
                f"This hub is not called {_host(scope)!r}. Use one of its names: {', '.join(sorted(self._hosts))}."
            )
            await Refusal(421, message).answer()(scope, receive, send)
            return
        await self.app(scope, receive, send)


class CsrfProtection:
    """CSRF middleware: refuses changes requested by pages of other sites, since a hub may trust callers without a token.

    Requests with a token in a header pass: a page of another site cannot add one.

    Args:
        app: the application that handles the requests.
        settings: `public_url`, another origin of this hub's own pages.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it only reads, or is not cross-site."""
        if scope["type"] == "http" and scope["method"] not in _SAFE and self._is_cross_site(Headers(scope=scope)):
            message = "This was sent from another site. Open the hub's own page and repeat it there, or send a token."
            await Refusal(403, message).answer()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_cross_site(self, headers: Headers) -> bool:
        return "authorization" not in headers and is_cross_site(headers, self._settings.public_url)


def is_cross_site(headers: Headers, public_url: str | None) -> bool:
    """Return whether the browser reports a cross-site request; other clients report nothing."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    hosts = {headers.get("host"), urlsplit(public_url or "").netloc} - {"", None}
    try:
        return urlsplit(origin).netloc not in hosts
    except ValueError:
        return True


def _host(scope: Scope) -> str:
    """Return the host name of the Host header in lower case, without a port."""
    try:
        return (urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname or "").lower()
    except ValueError:
        return ""
