"""Records of repositories beside their versions: creation time, author and visibility.

They are stored in the registry's own store, under `hub/repos/`, so that all processes of a hub share them. A delta pushed
straight to the registry has no record: it is public.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from deltahub.errors import ConflictError, IntegrityError
from deltahub.registry.hub_records import REPOSITORIES, repository_key
from deltahub.server.document_cache import Watched
from deltahub.stores.base import Store

_ATTEMPTS: Final = 20


@dataclass(frozen=True)
class Record:
    """Record of one repository.

    Attributes:
        created: creation time, ISO 8601 in UTC.
        author: who created it.
        private: whether it is visible only to tokens valid in its namespace.
    """

    created: str
    author: str
    private: bool = False


def may_be_private(record: Record | None) -> bool:
    """Return whether lists must hide a repository with this record; True also for a damaged record."""
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
        """Return the record of a repository, ``"namespace/name"``; None if it does not exist.

        Raises:
            IntegrityError: it is damaged.
        """
        return self._tagged(path)[0]

    def _tagged(self, path: str) -> tuple[Record | None, str | None]:
        found = REPOSITORIES.read(self._store, repository_key(path))
        return (Record(**found[0]), found[1]) if found else (None, None)

    def all(self) -> dict[str, Record | None]:
        """Return every record by repository, None for a damaged one; only records changed since the last call are read."""
        return {_path(key): record for key, record in self._watched.current().items()}

    def private(self) -> frozenset[str]:
        """Return the names of all private repositories, including those with a damaged record: they may be private."""
        current = self._watched.current()
        if self._hidden[0] is not current:
            self._hidden = (current, frozenset(_path(key) for key, record in current.items() if may_be_private(record)))
        return self._hidden[1]

    def names(self) -> list[str]:
        """Return the sorted names, ``"namespace/name"``, of all repositories with a record."""
        return sorted(_path(key) for key, _ in self._store.keys(REPOSITORIES.prefix) if key.endswith(".json"))

    def change(self, path: str, change: Callable[[Record | None], Record]) -> Record:
        """Change a record by compare-and-swap; a lost race is retried on the winner's record.

        Args:
            change: maps the current record, None if it does not exist, to the new one.
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
    """Parse a record; return None for a damaged one, which must not hide all others."""
    try:
        return Record(**REPOSITORIES.parse(key, data))
    except IntegrityError as error:
        logging.getLogger("deltahub").warning("A repository cannot be listed: %s", error)
        return None
