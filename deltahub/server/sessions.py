"""Browser sessions: a random number in a cookie that grants a token's read access until its owner signs out.

The documents are in the registry's own store, under `hub/sessions/`, so that all processes of a hub share them. A document's key
is the sha256 of the number in the cookie: read access to the store does not give a usable cookie.
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
from deltahub.registry.hub_records import SESSIONS
from deltahub.stores.base import Store

LIFETIME: Final = timedelta(days=30)


@dataclass(frozen=True)
class Session:
    """A sign-in.

    Attributes:
        token: the id of its token.
        created: start time, ISO 8601 in UTC.
        expires: end time.
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
        """Create a session, and remove expired ones.

        Args:
            token: the id of a token.

        Returns:
            The content of the cookie; it is not stored anywhere else.

        Raises:
            StorageError: the store is unreachable or read-only.
        """
        self._sweep()
        secret = secrets.token_urlsafe(32)
        expires = (datetime.now(UTC) + LIFETIME).isoformat(timespec="seconds").replace("+00:00", "Z")
        SESSIONS.write(self._store, _key(id_of(secret)), asdict(Session(token, stamps.now(), expires)), None)
        return secret

    def find(self, number: str) -> Session | None:
        """Return the session with an id; None if it does not exist or has expired.

        Raises:
            IntegrityError: its document is damaged.
            StorageError: the store is unreachable.
        """
        record = SESSIONS.read(self._store, _key(number))
        session = Session(**record[0]) if record else None
        return session if session and session.expires > stamps.now() else None

    def end(self, secret: str) -> None:
        """End a session; a missing one is fine."""
        self._store.delete(_key(id_of(secret)))

    def _sweep(self) -> None:
        for key in [key for key, _ in self._store.keys(SESSIONS.prefix)]:
            with contextlib.suppress(DeltaHubError):  # `deltahub verify` reports a damaged one
                record = SESSIONS.read(self._store, key)
                if record and record[0]["expires"] <= stamps.now():
                    self._store.delete(key)


def id_of(secret: str) -> str:
    """Return the session id of a cookie."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def _key(number: str) -> str:
    return f"{SESSIONS.prefix}{number}.json"
