"""Sessions of browsers: a random number in a cookie that stands for a token, for reading, until its owner signs out.

The documents are in the registry's own store, under `hub/sessions/`, so that every process of a hub knows every session. A document's key
is the sha256 of the number in the cookie: whoever reads the store cannot use it.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from deltahub.errors import DeltaHubError
from deltahub.registry import stamps
from deltahub.registry.hub_documents import SESSIONS
from deltahub.stores.base import Store

LIFETIME: Final = timedelta(days=30)


@dataclass(frozen=True)
class Session:
    """One sign-in.

    Attributes:
        token: the id of the token that it stands for.
        created: when it began, ISO 8601 in UTC.
        expires: when it ends.
    """

    token: str
    created: str
    expires: str


class Sessions:
    """All sessions of a hub.

    Args:
        store: of its registry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, token: str) -> str:
        """Begin a session, and remove those that have ended.

        Args:
            token: the id of a token.

        Returns:
            What the cookie holds; nothing else holds it.

        Raises:
            StorageError: the store is out of reach or read-only.
        """
        self._sweep()
        secret = secrets.token_urlsafe(32)
        expires = (datetime.now(UTC) + LIFETIME).isoformat(timespec="seconds").replace("+00:00", "Z")
        SESSIONS.write(self._store, _key(id_of(secret)), asdict(Session(token, stamps.now(), expires)), None)
        return secret

    def find(self, number: str) -> Session | None:
        """The session with an id, unless it has ended; None if there is none.

        Raises:
            IntegrityError: its document is damaged.
            StorageError: the store is out of reach.
        """
        found = SESSIONS.read(self._store, _key(number))
        session = Session(**found[0]) if found else None
        return session if session and session.expires > stamps.now() else None

    def end(self, secret: str) -> None:
        """End a session; one that is not there is fine."""
        self._store.delete(_key(id_of(secret)))

    def _sweep(self) -> None:
        for key in [key for key, _ in self._store.keys(SESSIONS.prefix)]:
            with contextlib.suppress(DeltaHubError):  # a damaged one is told of by `deltahub verify`
                found = SESSIONS.read(self._store, key)
                if found and found[0]["expires"] <= stamps.now():
                    self._store.delete(key)


def id_of(secret: str) -> str:
    """The id of the session that a cookie means."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _key(number: str) -> str:
    return f"{SESSIONS.prefix}{number}.json"
