"""Authentication and rate limit middleware.

A token bucket limits the rate of each caller. It holds at most `burst` tokens and gains `rate` tokens per second; each action takes one. (J. Turner, "New directions in
communications", IEEE Communications Magazine 24(10), 1986.)
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
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
from deltahub.server.errors import Refusal
from deltahub.server.settings import Settings
from deltahub.server.tokens import DocumentCache, LookupThreads, Token, Tokens, holder, id_of
from deltahub.stores.base import Store

_LARGEST: Final = 50_000  # callers; the least recently seen one is dropped, and starts again with a full bucket


class RateLimiter:
    """One token bucket per caller.

    Args:
        rate: tokens per second.
        burst: tokens in a full bucket.
        clock: monotonic clock in seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and the time of that count

    def wait(self, key: str) -> int:
        """Return the whole seconds until a caller may proceed, without taking a token; 0 for now."""
        return max(0, math.ceil((1 - self._drops(key)) / self.rate))

    def take(self, key: str) -> int:
        """Take a token if one is left.

        Returns:
            0, or the whole seconds until one is available.
        """
        if seconds := self.wait(key):
            return seconds
        self._levels[key] = (self._drops(key) - 1, self._clock())
        self._levels.move_to_end(key)
        while len(self._levels) > _LARGEST:
            self._levels.popitem(last=False)
        return 0

    def _drops(self, key: str) -> float:
        drops, since = self._levels.get(key, (self.burst, 0.0))
        return min(self.burst, drops + (self._clock() - since) * self.rate)


# The client of the Hugging Face Hub recognises an invalid token by exactly this text.
_INVALID: Final = {"X-Error-Message": "Invalid credentials in Authorization header"}
FREE: Final = ("/healthz", "/readyz")  # monitoring asks without a token, and often
SESSION: Final = "deltahub.session"  # key of a request's session cookie in an ASGI scope
_AUTHENTICATOR: Final = "deltahub.authenticator"


class Authenticator:
    """Looks up the token or session of a request.

    A valid token is accepted however many invalid ones came from the same address: only invalid ones are answered with 429.
    Lookups for an address that sent many invalid tokens run in a separate thread, unless the token is already known to exist.

    Args:
        store: holds the hub's tokens and sessions.
        failures: invalid tokens per minute, from one address for one token, before the answer is 429.
    """

    def __init__(self, store: Store, failures: int) -> None:
        lookups = LookupThreads()
        self.sessions = sessions.Sessions(store)
        self._tokens = DocumentCache(Tokens(store).find, lookups)
        self._known_sessions = DocumentCache(self.sessions.find, lookups)
        self._failures = RateLimiter(failures / 60, failures)

    async def token(self, secret: str, address: str) -> Token:
        """Return the token that a secret belongs to.

        Raises:
            Refusal: the secret does not belong to a valid token, or the store is unreachable.
        """
        number = id_of(secret)
        with _refusals_of_lookups():
            suspect = bool(self._failures.wait(address))
            token = holder(await self._tokens.find(number, suspect=suspect), secret) if number else None
        return self._checked(token, address, number or "")

    async def visitor(self, cookie: str, address: str) -> Caller:
        """Return the owner of a session's token, limited to reading.

        Raises:
            Refusal: the session has ended, its token is no longer valid, or the store is unreachable.
        """
        number = sessions.id_of(cookie)
        with _refusals_of_lookups():
            suspect = bool(self._failures.wait(address))
            session = await self._known_sessions.find(number, suspect=suspect)
            token = await self._tokens.find(session.token) if session else None
        return replace(self._checked(token, address, number).caller, scope="read")

    def end(self, cookie: str) -> None:
        """End a session; other processes notice within seconds.

        Raises:
            StorageError: the store is unreachable.
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
        message = f"The token is not valid: {fault}. Ask the administrator of this hub for another one."
        raise Refusal(401, message, headers={**_INVALID, "WWW-Authenticate": "Bearer"})


class Authentication:
    """Middleware that sets the caller of each request, and refuses invalid tokens and callers over the rate limit.

    Args:
        app: the application that handles the requests.
        store: holds the hub's tokens.
        settings: the scope of callers without a token, and the rate limits. Requests are counted per process.
    """

    def __init__(self, app: ASGIApp, store: Store, settings: Settings) -> None:
        self.app = app
        self._authenticator = Authenticator(store, settings.failures)
        self._anonymous = Caller(scope=settings.anonymous)
        self._requests = RateLimiter(settings.rate, settings.burst) if settings.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Identify the caller and pass the request on."""
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

    def _hold_back(self, key: str) -> None:
        if self._requests and (seconds := self._requests.take(key)):
            raise _too_many(seconds, f"more than {self._requests.rate:g} requests a second came")


def authenticator_of(request: HTTPConnection) -> Authenticator:
    """Return the authenticator that identified the caller of a request."""
    authenticator = request.scope[_AUTHENTICATOR]
    assert isinstance(authenticator, Authenticator)
    return authenticator


@contextlib.contextmanager
def _refusals_of_lookups() -> Iterator[None]:
    """Turn lookup errors into refusals that reveal nothing about the hub's disk."""
    try:
        yield
    except DeltaHubError as error:
        logging.getLogger("deltahub.server").error("Looking up a token failed: %s", error)  # noqa: TRY400  (one line)
        if isinstance(error, IntegrityError):
            message = "The hub's record of the token is damaged. Ask the administrator of this hub for another one."
            raise Refusal(500, message) from error
        message = "The hub cannot look up the token now. Repeat in a while, or ask the administrator of this hub."
        raise Refusal(503, message, headers={"Retry-After": "5"}) from error


def _secret(scope: Scope) -> str | None:
    """Return the secret sent with a request; None without one. An unreadable secret becomes "", which matches no token."""
    values = Headers(scope=scope).getlist("authorization")
    if not values:
        return None
    kind, _, secret = values[0].strip().partition(" ")
    return secret.strip() if len(values) == 1 and kind.lower() == "bearer" else ""


def _too_many(seconds: int, reason: str) -> Refusal:
    headers = {"Retry-After": str(seconds), "RateLimit": f'"api";r=0;t={seconds}'}
    return Refusal(429, f"Too many requests: {reason}. Wait {seconds} seconds.", headers=headers)
