"""Bearer tokens of a hub.

    dhub_<16 hex digits>_<43 letters and digits>

The hex digits are the token's id and give the key of its document, so that no search is needed; the rest is 256 random bits, of
which the document holds only the sha256. The documents are in the registry's own store, under `hub/tokens/`, so that all
processes of a hub share them.

Documents are cached: requests need no store read, and a revocation takes effect within seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Generic, TypeVar

from deltahub.errors import ConfigError, IntegrityError, NotFoundError
from deltahub.files.reserve import with_reserve
from deltahub.reference import check_name
from deltahub.registry import stamps
from deltahub.registry.hub_records import TOKENS
from deltahub.server.access import Caller, Scope
from deltahub.stores.base import Store
from deltahub.text.suggestions import closest

LIFETIME: Final = 2.0  # cache TTL in seconds
_LARGEST: Final = 10_000  # ids, existing or not, so that made-up ones cannot fill the memory
_THREADS: Final = 8
T = TypeVar("T")


class LookupThreads:
    """Thread pools for caller lookups only, so that other work that waits for the store cannot delay them.

    Addresses that sent many invalid tokens share one separate thread: their made-up tokens cannot delay other callers.
    """

    def __init__(self) -> None:
        self.usual = ThreadPoolExecutor(_THREADS, "callers")
        self.suspect = ThreadPoolExecutor(1, "suspect-callers")


class DocumentCache(Generic[T]):
    """Read-through cache of documents by id, at most seconds old.

    Args:
        find: reads the document of an id; None if it does not exist.
        lookups: the thread pools that run `find`.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, find: Callable[[str], T | None], lookups: LookupThreads, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read_now, self._lookups, self._clock = find, lookups, clock
        self._cache: OrderedDict[str, tuple[float, asyncio.Future[T | None]]] = OrderedDict()
        self._existing: OrderedDict[str, None] = OrderedDict()  # ids found at least once

    async def find(self, number: str, *, suspect: bool = False) -> T | None:
        """Return the document of an id; None if it does not exist.

        Args:
            suspect: whether the client address sent many invalid ids; then only ids found before use the usual thread pool.

        Raises:
            IntegrityError: the document is damaged.
            StorageError: the store is unreachable; an expired cache entry admits no caller.
        """
        now = self._clock()
        cached = self._cache.get(number)
        if cached is None or cached[0] <= now or _has_failed(cached[1]):
            usual = not suspect or number in self._existing
            pool = self._lookups.usual if usual else self._lookups.suspect
            future = asyncio.get_running_loop().run_in_executor(pool, self._read_now, number)
            cached = self._cache[number] = (now + LIFETIME, future)
        _touch(self._cache, number)
        document = await asyncio.shield(cached[1])  # concurrent callers share one read
        if document is not None:
            self._existing.setdefault(number)
            _touch(self._existing, number)
        return document

    def forget(self, number: str) -> None:
        """Drop the cached document of an id."""
        self._cache.pop(number, None)


def _touch(cache: OrderedDict[str, Any], number: str) -> None:
    cache.move_to_end(number)
    while len(cache) > _LARGEST:
        cache.popitem(last=False)


def _has_failed(future: asyncio.Future[T | None]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


_SECRET: Final = re.compile(r"dhub_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_GRANTED: Final = ("read", "write", "admin")
_NOBODY: Final = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token without its secret.

    Attributes:
        id: 16 hex digits, part of the secret but not secret itself.
        name: who or what uses it; appears in logs, and as the author of what is pushed with it.
        scope: ``"read"``, ``"write"`` or ``"admin"``.
        namespaces: where the scope applies, sorted; None for everywhere.
        created: creation time, ISO 8601 in UTC.
        expires: time from which it is refused; None for never.
        revoked: time of its revocation; None if it was not revoked.
        sha256: of the secret.
    """

    id: str
    name: str
    scope: Scope
    namespaces: tuple[str, ...] | None
    created: str
    expires: str | None
    revoked: str | None
    sha256: str

    @property
    def caller(self) -> Caller:
        """The caller that the token authenticates."""
        return Caller(self.name, self.scope, None if self.namespaces is None else frozenset(self.namespaces), self.id)

    def matches(self, secret: str) -> bool:
        """Return whether a secret belongs to this token, in constant time."""
        return hmac.compare_digest(hashed(secret), self.sha256)

    def fault(self, now: str) -> str | None:
        """Return why the token is refused at a time, as a clause; None if it is valid."""
        if self.revoked:
            return "it was revoked"
        if self.expires and self.expires <= now:
            return f"it expired at {self.expires}"
        return None


class Tokens:
    """All tokens of a hub.

    Args:
        store: of its registry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(
        self, name: str, scope: Scope, namespaces: Iterable[str] = (), expires: timedelta | None = None
    ) -> tuple[Token, str]:
        """Create a token.

        Args:
            namespaces: where it may be used; empty for everywhere.
            expires: lifetime; None for no end.

        Returns:
            The token and its secret, which is not stored anywhere.

        Raises:
            ReferenceSyntaxError: the name or a namespace is malformed.
            ConfigError: a valid token has the name, or the scope is unknown or cannot be limited to namespaces.
        """
        check_name(name, "token's name")
        allowed_namespaces = tuple(sorted({check_name(namespace, "namespace") for namespace in namespaces}))
        if scope not in _GRANTED:
            msg = f"{scope!r} is not a token scope: expected read, write or admin."
            raise ConfigError(msg)
        if scope == "admin" and allowed_namespaces:
            msg = (
                "A token of scope admin may do everything everywhere. Leave the namespaces out, or choose scope write."
            )
            raise ConfigError(msg)
        if any(token.name == name for token in self.all() if not token.fault(stamps.now())):
            msg = f"A token called {name!r} is in use. Choose another name, or revoke it: deltahub serve token revoke {name}"
            raise ConfigError(msg)
        number = secrets.token_hex(8)
        secret = f"dhub_{number}_{secrets.token_urlsafe(32)}"
        token = Token(
            id=number,
            name=name,
            scope=scope,
            namespaces=allowed_namespaces or None,
            created=stamps.now(),
            expires=_later(expires) if expires else None,
            revoked=None,
            sha256=hashed(secret),
        )
        TOKENS.write(self._store, _key(number), asdict(token), None)
        return token, secret

    def all(self) -> list[Token]:
        """Return all tokens sorted by name, including refused ones; a damaged one, which never authenticates, is skipped."""
        tokens = []
        for key, _ in self._store.keys(TOKENS.prefix):
            try:
                tagged = self._tagged(key)
            except IntegrityError as error:
                logging.getLogger("deltahub").warning("A token cannot be listed: %s", error)
                continue
            if tagged:  # else it was deleted since the listing
                tokens.append(tagged[0])
        return sorted(tokens, key=lambda token: (token.name, token.created))

    def revoke(self, name: str) -> list[Token]:
        """Revoke a token permanently, by its name or id.

        Returns:
            The revoked tokens.

        Raises:
            NotFoundError: no unrevoked token has the name or id.
        """
        tokens = [token for token in self.all() if not token.revoked]
        matches = [token for token in tokens if name in (token.name, token.id)]
        if not matches:
            names = tuple(token.name for token in tokens)
            raise NotFoundError(
                f"A token called {name!r} that is not revoked", (self._store.url,), closest(name, names)
            )
        return [with_reserve(self._store.spend_reserve, partial(self._revoke, _key(token.id))) for token in matches]

    def _revoke(self, key: str) -> Token:
        tagged = self._tagged(key)
        if tagged is None:
            raise NotFoundError(key, (self._store.url,))
        revoked = replace(tagged[0], revoked=stamps.now())
        TOKENS.write(self._store, key, asdict(revoked), tagged[1])
        return revoked

    def find(self, number: str) -> Token | None:
        """Return the token with an id; None if it does not exist.

        Raises:
            IntegrityError: its document is damaged.
            StorageError: the store is unreachable.
        """
        tagged = self._tagged(_key(number))
        return tagged[0] if tagged else None

    def _tagged(self, key: str) -> tuple[Token, str] | None:
        record = TOKENS.read(self._store, key)
        if record is None:
            return None
        values, etag = record
        namespaces = values.pop("namespaces")
        return Token(**values, namespaces=None if namespaces is None else tuple(namespaces)), etag


def id_of(secret: str) -> str | None:
    """Return the token id within a secret; None if it is not a token's secret."""
    match = _SECRET.fullmatch(secret)
    return match[1] if match else None


def hashed(secret: str) -> str:
    """Return the stored hash of a secret. The secret is random, so a plain hash cannot be reversed by guessing."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def holder(token: Token | None, secret: str) -> Token | None:
    """Return the token if the secret matches; a missing token takes the same time."""
    is_match = token.matches(secret) if token else hmac.compare_digest(hashed(secret), _NOBODY)
    return token if is_match else None


def _key(number: str) -> str:
    return f"{TOKENS.prefix}{number}.json"


def _later(duration: timedelta) -> str:
    return (datetime.now(UTC) + duration).isoformat(timespec="seconds").replace("+00:00", "Z")
