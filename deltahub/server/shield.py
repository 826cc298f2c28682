"""Middleware for browsers: names by which the hub may be called, pages from which it may be changed, and headers that keep its answers from
being misused.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub.server.refusals import Refusal
from deltahub.server.settings import Settings

# Files that users pushed are never taken for pages of the hub; the pages themselves set a policy of their own.
_HEADERS: Final = {
    "Cache-Control": "private, no-cache",  # what one caller may see is kept for no other
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
    """Adds security headers to all answers that have none of their own.

    Args:
        app: what handles the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def shielded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if scope["scheme"] == "https":
                    headers.setdefault("Strict-Transport-Security", _HSTS)
            await send(message)

        await self.app(scope, receive, shielded)


class OwnNames:
    """Refuses requests under foreign names, as they come after DNS rebinding.

    Args:
        app: what handles the requests.
        settings: `hosts`, the names of this hub; none for any.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._hosts = frozenset(name.lower() for name in settings.hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it calls the hub by one of its names."""
        if scope["type"] == "http" and self._hosts and _host(scope) not in self._hosts:
            message = (
                f"This hub is not called {_host(scope)!r}. Use one of its names: {', '.join(sorted(self._hosts))}."
            )
            await Refusal(421, message).answer()(scope, receive, send)
            return
        await self.app(scope, receive, send)


class OwnPages:
    """Refuses what the page of another site lets a browser change: a hub where nobody needs a token trusts whoever reaches it.

    Requests with a token of their own are not the browser's doing: no other site's page can add one.

    Args:
        app: what handles the requests.
        settings: `public_url`, another name of this hub's own pages.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if it reads, or comes from no other site."""
        if scope["type"] == "http" and scope["method"] not in _SAFE and self._is_foreign(Headers(scope=scope)):
            message = "This was sent from another site. Open the hub's own page and repeat it there, or send a token."
            await Refusal(403, message).answer()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_foreign(self, headers: Headers) -> bool:
        return "authorization" not in headers and is_foreign(headers, self._settings.public_url)


def is_foreign(headers: Headers, public_url: str | None) -> bool:
    """Whether a browser says that a request was made by a page of another site; other programs say nothing."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
    own = {headers.get("host"), urlsplit(public_url or "").netloc} - {"", None}
    try:
        return urlsplit(origin).netloc not in own
    except ValueError:
        return True


def _host(scope: Scope) -> str:
    """The name in the Host header, without a port, in lower case."""
    try:
        return (urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname or "").lower()
    except ValueError:
        return ""
