"""Middleware that finds out who calls, and holds back who calls too often."""

from __future__ import annotations

import ipaddress
import logging
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from deltahub.errors import DeltaHubError, IntegrityError
from deltahub.registry import stamps
from deltahub.server.access import CALLER, Caller
from deltahub.server.buckets import Buckets
from deltahub.server.known import KnownTokens
from deltahub.server.refusals import Refusal
from deltahub.server.settings import Settings
from deltahub.server.tokens import Token

# The client of the Hugging Face Hub knows a wrong token by these very words.
_INVALID: Final = {"X-Error-Message": "Invalid credentials in Authorization header"}
_FREE: Final = ("/healthz", "/readyz")  # whoever watches over the hub asks without a token, and often


class Authentication:
    """Puts the caller into the scope of each request; refuses wrong tokens, and callers who come too often.

    Args:
        app: what handles the requests.
        known: the hub's tokens.
        settings: what callers without a token may do, and how often everyone may come. The counts are this process's own.
    """

    def __init__(self, app: ASGIApp, known: KnownTokens, settings: Settings) -> None:
        self.app = app
        self._known = known
        self._anonymous = Caller(scope=settings.anonymous)
        self._requests = Buckets(settings.rate, settings.burst) if settings.rate else None
        self._failures = Buckets(settings.failures / 60, settings.failures)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the caller, and pass the request on."""
        if scope["type"] != "http" or scope["path"] in _FREE:
            await self.app(scope, receive, send)
            return
        address = address_of(scope)
        try:
            scope[CALLER] = caller = await self._caller(scope, address)
            self._hold_back(caller.name or address)
        except Refusal as refusal:
            await refusal.answer()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope, address: str) -> Caller:
        secret = _secret(scope)
        if secret is None:
            return self._anonymous
        if seconds := self._failures.wait(address):
            raise _too_many(seconds, f"{self._failures.burst:g} wrong tokens came from this address")
        token = await self._holder(secret)
        fault = token.fault(stamps.now()) if token else "this hub does not know it"
        if token is None or fault:
            self._failures.take(address)
            message = f"The token is not valid: {fault}. Ask whoever runs this hub for another one."
            raise Refusal(401, message, headers={**_INVALID, "WWW-Authenticate": "Bearer"})
        return token.caller

    async def _holder(self, secret: str) -> Token | None:
        try:
            return await self._known.holder_of(secret)
        except DeltaHubError as error:
            logging.getLogger("deltahub.server").error("Looking up a token failed: %s", error)  # noqa: TRY400  (one line)
            if isinstance(error, IntegrityError):
                message = "What this hub knows of the token is damaged. Ask whoever runs this hub for another one."
                raise Refusal(500, message) from error
            message = "The hub cannot look up the token now. Repeat in a while, or ask whoever runs this hub."
            raise Refusal(503, message, headers={"Retry-After": "5"}) from error

    def _hold_back(self, who: str) -> None:
        if self._requests and (seconds := self._requests.take(who)):
            raise _too_many(seconds, f"more than {self._requests.rate:g} requests a second came")


def address_of(scope: Scope) -> str:
    """The address that a request came from; of IPv6 the network of 64 bits, which one customer has to themselves."""
    host = scope["client"][0] if scope.get("client") else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


def _secret(scope: Scope) -> str | None:
    """The secret that came with a request; None if none did. Unreadable ones are no secret of any token."""
    values = Headers(scope=scope).getlist("authorization")
    if not values:
        return None
    kind, _, secret = values[0].strip().partition(" ")
    return secret.strip() if len(values) == 1 and kind.lower() == "bearer" else ""


def _too_many(seconds: int, why: str) -> Refusal:
    headers = {"Retry-After": str(seconds), "RateLimit": f'"api";r=0;t={seconds}'}
    return Refusal(429, f"Too many requests: {why}. Wait {seconds} seconds.", headers=headers)
