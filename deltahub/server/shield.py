"""Middleware for browsers: names by which the hub may be called, and headers that keep its answers from being misused."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deltahub.server.refusals import Refusal
from deltahub.server.settings import Settings

# Files that users pushed are never taken for pages of the hub; the pages themselves set a policy of their own.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
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


def _host(scope: Scope) -> str:
    """The name in the Host header, without a port, in lower case."""
    try:
        return (urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname or "").lower()
    except ValueError:
        return ""
