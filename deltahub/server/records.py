"""What a hub knows of a repository beside its versions: that it was created, by whom, and whether it is private.

The records lie in the registry's own store, under `hub/repos/`, so that every process of a hub sees the same. What was pushed straight to
the registry has none: it is public.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from deltahub.errors import ConflictError, IntegrityError
from deltahub.registry.hub_documents import REPOSITORIES, repository_key
from deltahub.server.watched import Watched
from deltahub.stores.base import Store

_ATTEMPTS: Final = 20


@dataclass(frozen=True)
class Record:
    """What is known of one repository.

    Attributes:
        created: when it was created, ISO 8601 in UTC.
        author: who created it.
        private: whether only those may see it whose token holds in its namespace.
    """

    created: str
    author: str
    private: bool = False


def may_be_private(record: Record | None) -> bool:
    """Whether a repository with this record is hidden in lists: so is one whose record is damaged."""
    return record is None or record.private


class Records:
    """The records of all repositories of a hub.

    Args:
        store: of its registry.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watched = Watched(store, REPOSITORIES.prefix, _listed)
        self._hidden: tuple[Mapping[str, Record | None], frozenset[str]] = ({}, frozenset())

    def find(self, path: str) -> Record | None:
        """The record of a repository, ``"namespace/name"``; None if there is none.

        Raises:
            IntegrityError: it is damaged.
        """
        return self._tagged(path)[0]

    def _tagged(self, path: str) -> tuple[Record | None, str | None]:
        found = REPOSITORIES.read(self._store, repository_key(path))
        return (Record(**found[0]), found[1]) if found else (None, None)

    def all(self) -> dict[str, Record | None]:
        """Every record by its repository, None if it is damaged; only those that changed since the last time are read."""
        return {_path(key): record for key, record in self._watched.current().items()}

    def private(self) -> frozenset[str]:
        """The names of all private repositories, and of those whose record is damaged: they may be."""
        current = self._watched.current()
        if self._hidden[0] is not current:
            self._hidden = (current, frozenset(_path(key) for key, record in current.items() if may_be_private(record)))
        return self._hidden[1]

    def names(self) -> list[str]:
        """Every repository that has a record, ``"namespace/name"``, sorted."""
        return sorted(_path(key) for key, _ in self._store.keys(REPOSITORIES.prefix) if key.endswith(".json"))

    def change(self, path: str, change: Callable[[Record | None], Record]) -> Record:
        """Swap a record for a changed one; a lost race is run again on what the winner wrote.

        Args:
            change: makes the new record from the current one, None if there is none.
        """
        for attempt in range(_ATTEMPTS):
            record, etag = self._tagged(path)
            changed = change(record)
            if changed == record:
                return changed
            try:
                REPOSITORIES.write(self._store, repository_key(path), asdict(changed), etag)
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return changed
        raise AssertionError("unreachable")

    def delete(self, path: str) -> None:
        """Remove a record; a missing one is fine."""
        self._store.delete(repository_key(path))


def _path(key: str) -> str:
    return key[len(REPOSITORIES.prefix) : -len(".json")]


def _listed(key: str, data: bytes) -> Record | None:
    """A record; None if it is damaged: one must not hide all others."""
    try:
        return Record(**REPOSITORIES.parse(key, data))
    except IntegrityError as error:
        logging.getLogger("deltahub").warning("A repository cannot be listed: %s", error)
        return None
