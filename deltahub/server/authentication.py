"""Middleware that finds out who calls, and holds back who calls too often."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from deltahub.errors import DeltaHubError, IntegrityError
from deltahub.registry import stamps
from deltahub.server import sessions
from deltahub.server.access import CALLER, Caller
from deltahub.server.addresses import address_of
from deltahub.server.buckets import Buckets
from deltahub.server.known import Known, Lookups
from deltahub.server.refusals import Refusal
from deltahub.server.settings import Settings
from deltahub.server.tokens import Token, Tokens, holder, id_of
from deltahub.stores.base import Store

# The client of the Hugging Face Hub knows a wrong token by these very words.
_INVALID: Final = {"X-Error-Message": "Invalid credentials in Authorization header"}
FREE: Final = ("/healthz", "/readyz")  # whoever watches over the hub asks without a token, and often
SESSION: Final = "deltahub.session"  # where a request's cookie is in an ASGI scope
_AUTHENTICATOR: Final = "deltahub.authenticator"


class Authenticator:
    """Finds the token or the session that a request comes with.

    Whoever has a good token is let in, however many wrong ones came from the same address: only wrong ones are answered with 429. An
    address that sent many is looked up in a thread of its own, unless it asks with a token that is known to exist.

    Args:
        store: where the hub's tokens and sessions are.
        failures: wrong tokens a minute, from one address for one token, before the answer is 429.
    """

    def __init__(self, store: Store, failures: int) -> None:
        lookups = Lookups()
        self.sessions = sessions.Sessions(store)
        self._tokens = Known(Tokens(store).find, lookups)
        self._known_sessions = Known(self.sessions.find, lookups)
        self._failures = Buckets(failures / 60, failures)

    async def token(self, secret: str, address: str) -> Token:
        """The token that a secret belongs to.

        Raises:
            Refusal: it belongs to none that is valid, or the store is out of reach.
        """
        number = id_of(secret)
        with _told_apart():
            suspect = bool(self._failures.wait(address))
            token = holder(await self._tokens.find(number, suspect=suspect), secret) if number else None
        return self._checked(token, address, number or "")

    async def visitor(self, cookie: str, address: str) -> Caller:
        """Who signed in: the token's owner, who may only read by it.

        Raises:
            Refusal: the session has ended, its token is not valid any more, or the store is out of reach.
        """
        number = sessions.id_of(cookie)
        with _told_apart():
            suspect = bool(self._failures.wait(address))
            session = await self._known_sessions.find(number, suspect=suspect)
            token = await self._tokens.find(session.token) if session else None
        return replace(self._checked(token, address, number).caller, scope="read")

    def end(self, cookie: str) -> None:
        """End a session; other processes know within seconds.

        Raises:
            StorageError: the store is out of reach.
        """
        self.sessions.end(cookie)
        self._known_sessions.forget(sessions.id_of(cookie))

    def _checked(self, token: Token | None, address: str, number: str) -> Token:
        fault = token.fault(stamps.now()) if token else "this hub does not know it"
        if token and not fault:
            return token
        self._failures.take(address)
        if seconds := self._failures.take(f"{address} {number}"):
            raise _too_many(seconds, f"{self._failures.burst:g} wrong tokens came from this address")
        message = f"The token is not valid: {fault}. Ask whoever runs this hub for another one."
        raise Refusal(401, message, headers={**_INVALID, "WWW-Authenticate": "Bearer"})


class Authentication:
    """Puts the caller into the scope of each request; refuses wrong tokens, and callers who come too often.

    Args:
        app: what handles the requests.
        store: where the hub's tokens are.
        settings: what callers without a token may do, and how often everyone may come. The counts are this process's own.
    """

    def __init__(self, app: ASGIApp, store: Store, settings: Settings) -> None:
        self.app = app
        self._authenticator = Authenticator(store, settings.failures)
        self._anonymous = Caller(scope=settings.anonymous)
        self._requests = Buckets(settings.rate, settings.burst) if settings.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the caller, and pass the request on."""
        if scope["type"] != "http" or scope["path"] in FREE:
            await self.app(scope, receive, send)
            return
        address = address_of(scope)
        scope[_AUTHENTICATOR] = self._authenticator
        try:
            scope[CALLER] = caller = await self._caller(scope, address)
            self._hold_back(caller.name or address)
        except Refusal as refusal:
            await refusal.answer()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope, address: str) -> Caller:
        secret = _secret(scope)
        if secret is None and SESSION not in scope:
            return self._anonymous
        try:
            if secret is None:
                return await self._authenticator.visitor(scope[SESSION], address)
            return (await self._authenticator.token(secret, address)).caller
        except Refusal:
            self._hold_back(f"{address} refused")
            raise

    def _hold_back(self, who: str) -> None:
        if self._requests and (seconds := self._requests.take(who)):
            raise _too_many(seconds, f"more than {self._requests.rate:g} requests a second came")


def authenticator_of(request: HTTPConnection) -> Authenticator:
    """What found the caller of a request."""
    found = request.scope[_AUTHENTICATOR]
    assert isinstance(found, Authenticator)
    return found


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    """Answer what keeps a token from being looked up without a word about the hub's own disk."""
    try:
        yield
    except DeltaHubError as error:
        logging.getLogger("deltahub.server").error("Looking up a token failed: %s", error)  # noqa: TRY400  (one line)
        if isinstance(error, IntegrityError):
            message = "What this hub knows of the token is damaged. Ask whoever runs this hub for another one."
            raise Refusal(500, message) from error
        message = "The hub cannot look up the token now. Repeat in a while, or ask whoever runs this hub."
        raise Refusal(503, message, headers={"Retry-After": "5"}) from error


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
