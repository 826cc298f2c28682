"""In-memory copy of documents below a prefix of a store; checking for changes costs next to nothing.

Only changed folders are listed, and only changed documents are read. An unchanged folder stamp proves that nothing changed only
if the stamp is not recent, as in `deltahub.registry.search.refresh`: so a folder is skipped once it was listed two seconds or more
after its stamp was first seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from deltahub.registry.search.refresh import TICK
from deltahub.stores.base import Store

T = TypeVar("T")


@dataclass
class _Folder(Generic[T]):
    """A folder: its stamp, when the stamp was first seen, whether it can be skipped, and its documents with their stamps."""

    stamp: str | None
    seen: float
    settled: bool = False
    documents: dict[str, tuple[str, T]] = field(default_factory=dict)


class Watched(Generic[T]):
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
            stamps = self._stamps()
            changed = self._folders.keys() != stamps.keys()
            self._folders = {name: self._folders.get(name) or _Folder(None, 0.0) for name in stamps}
            for name, stamp in stamps.items():
                changed |= self._refresh(name, stamp)
            if changed:
                found = {key: one for folder in self._folders.values() for key, (_, one) in folder.documents.items()}
                self._current = MappingProxyType(dict(sorted(found.items())))
            return self._current

    def _stamps(self) -> dict[str, str | None]:
        """Return the folders with their stamps; a single one with stamp None if the store has no stamps."""
        if self._store.folder_stamp(self._prefix) is None:
            return {self._prefix: None}
        names = (name for name in self._store.children(self._prefix) if name.endswith("/"))
        return {f"{self._prefix}{name}": self._store.folder_stamp(f"{self._prefix}{name}") for name in names}

    def _refresh(self, name: str, stamp: str | None) -> bool:
        """Update a folder; return whether anything in it changed."""
        folder, now = self._folders[name], self._clock()
        same = stamp is not None and stamp == folder.stamp
        if same and folder.settled:
            return False
        before = folder.documents
        folder.documents = self._listed(name, before)
        folder.settled = same and now - folder.seen >= TICK
        if not same:
            folder.stamp, folder.seen = stamp, now
        return folder.documents != before

    def _listed(self, name: str, known: Mapping[str, tuple[str, T]]) -> dict[str, tuple[str, T]]:
        found = {}
        for key, stamp in self._store.keys(name):
            if key in known and known[key][0] == stamp:
                found[key] = known[key]
            elif key.endswith(".json") and (data := self._store.read_tagged(key)):  # else it was deleted meanwhile
                found[key] = (stamp, self._read(key, data[0]))
        return found
