"""Records of repositories beside their versions: creation time, author and visibility.

They are stored in the registry's own store, under `hub/repos/`, so that all processes of a hub share them. A delta pushed
straight to the registry has no record: it is public.

A copy is kept in memory, and checking for changes costs next to nothing: only changed folders are listed, by
`deltahub.stores.folder_stamps`, and only changed documents are read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from deltahub.errors import IntegrityError
from deltahub.reference import DeltaPath, as_delta_path
from deltahub.registry.hub_records import REPOSITORIES, repository_key
from deltahub.stores.base import Store
from deltahub.stores.folder_stamps import FolderStamp, folder_stamps
from deltahub.stores.retry import SwapRetry

T = TypeVar("T")


@dataclass
class _Folder(Generic[T]):
    """A folder: its state when it was listed, and its documents with their stamps."""

    state: FolderStamp = field(default_factory=FolderStamp)
    documents: dict[str, tuple[str, T]] = field(default_factory=dict)


class PolledDocuments(Generic[T]):
    """All documents below a prefix.

    Args:
        store: holds the documents.
        prefix: ends with "/"; the documents are in folders below it.
        read: converts a document, given its key and bytes, to the value kept.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, store: Store, prefix: str, read: Callable[[str, bytes], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._prefix, self._read, self._clock = store, prefix, read, clock
        self._lock = threading.Lock()
        self._folders: dict[str, _Folder[T]] = {}
        self._current: Mapping[str, T] = MappingProxyType({})

    def current(self) -> Mapping[str, T]:
        """Return every document by key, sorted; the same object while nothing changes."""
        with self._lock:
            stamps = folder_stamps(self._store, self._prefix)
            changed = self._folders.keys() != stamps.keys()
            self._folders = {name: self._folders.get(name) or _Folder() for name in stamps}
            for name, stamp in stamps.items():
                changed |= self._refresh(name, stamp)
            if changed:
                documents = {
                    key: document
                    for folder in self._folders.values()
                    for key, (_, document) in folder.documents.items()
                }
                self._current = MappingProxyType(dict(sorted(documents.items())))
            return self._current

    def _refresh(self, name: str, stamp: str | None) -> bool:
        """Update a folder; return whether anything in it changed."""
        folder, now = self._folders[name], self._clock()
        if folder.state.proves(stamp, now):
            return False
        previous = folder.documents
        folder.documents = self._read_folder(name, previous)
        folder.state = folder.state.listed(stamp, now)
        return folder.documents != previous

    def _read_folder(self, name: str, previous: Mapping[str, tuple[str, T]]) -> dict[str, tuple[str, T]]:
        documents = {}
        for key, stamp in self._store.keys(name):
            if key in previous and previous[key][0] == stamp:
                documents[key] = previous[key]
            elif key.endswith(".json") and (data := self._store.read_tagged(key)):  # else it was deleted meanwhile
                documents[key] = (stamp, self._read(key, data[0]))
        return documents


@dataclass(frozen=True)
class Squash:
    """The beginning of a branch whose history was squashed.

    Attributes:
        version: the oldest version that is still in its history.
        message: of the commit that squashed it.
        time: of that commit, ISO 8601 in UTC.
        author: of that commit.
    """

    version: str
    message: str
    time: str
    author: str


@dataclass(frozen=True)
class Record:
    """Record of a repository.

    Attributes:
        created: creation time, ISO 8601 in UTC.
        author: who created it.
        private: whether it is visible only to tokens valid in its namespace.
        adopted: whether its versions were pushed to the registry before it had a record.
        gated: how access to its files is given, ``"auto"`` or ``"manual"``; None if it is not gated.
        plain: whether the ``.gitattributes`` that a new repository begins with was deleted.
        squashed: for a branch whose history was squashed, the version with which it begins now.
    """

    created: str
    author: str
    private: bool = False
    adopted: bool = False
    gated: str | None = None
    plain: bool = False
    squashed: Mapping[str, Squash] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """Read a stored record."""
        squashed = {branch: Squash(**squash) for branch, squash in values.get("squashed", {}).items()}
        return cls(**{**values, "squashed": squashed})

    def to_dict(self) -> dict[str, Any]:
        """Return the record as it is stored: what earlier releases do not know is left out where it says nothing."""
        values = asdict(self)
        return {
            key: value for key, value in values.items() if value or key not in ("adopted", "gated", "plain", "squashed")
        }


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
        self._watched = PolledDocuments(store, REPOSITORIES.prefix, _parse_listed)
        self._hidden: tuple[Mapping[str, Record | None], frozenset[DeltaPath]] = ({}, frozenset())

    def find(self, path: str) -> Record | None:
        """Return the record of a repository, ``"namespace/name"``; None if it does not exist.

        Raises:
            IntegrityError: it is damaged.
        """
        return self._tagged(path)[0]

    def _tagged(self, path: str) -> tuple[Record | None, str | None]:
        record = REPOSITORIES.read(self._store, repository_key(path))
        return (Record.from_dict(record[0]), record[1]) if record else (None, None)

    def all(self) -> dict[str, Record | None]:
        """Return every record by repository, None for a damaged one; only records changed since the last call are read."""
        return {_path(key): record for key, record in self._watched.current().items()}

    def private(self) -> frozenset[DeltaPath]:
        """Return the names of all private repositories, including those with a damaged record: they may be private."""
        current = self._watched.current()
        if self._hidden[0] is not current:
            paths = (as_delta_path(_path(key)) for key, record in current.items() if may_be_private(record))
            self._hidden = (current, frozenset(path for path in paths if path))
        return self._hidden[1]

    def names(self) -> list[str]:
        """Return the sorted names, ``"namespace/name"``, of all repositories with a record."""
        return sorted(_path(key) for key, _ in self._store.keys(REPOSITORIES.prefix) if key.endswith(".json"))

    def change(self, path: str, change: Callable[[Record | None], Record]) -> Record:
        """Change a record by compare-and-swap; a lost race is retried on the winner's record.

        Args:
            change: maps the current record, None if it does not exist, to the new one.
        """
        retry = SwapRetry()
        while True:
            record, etag = self._tagged(path)
            changed = change(record)
            if changed == record:
                return changed
            with retry:
                REPOSITORIES.write(self._store, repository_key(path), changed.to_dict(), etag)
                return changed

    def delete(self, path: str) -> None:
        """Remove a record; a missing one is fine."""
        self._store.delete(repository_key(path))


def _path(key: str) -> str:
    return key[len(REPOSITORIES.prefix) : -len(".json")]


def _parse_listed(key: str, data: bytes) -> Record | None:
    """Parse a record; return None for a damaged one, which must not hide all others."""
    try:
        return Record.from_dict(REPOSITORIES.parse(key, data))
    except IntegrityError as error:
        logging.getLogger("deltahub").warning("A repository cannot be listed: %s", error)
        return None
