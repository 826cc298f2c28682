"""A store in memory, for tests and experiments."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from deltahub.errors import ConflictError, NotFoundError, Outcome, outcome
from deltahub.stores.base import Progress, Source, Swap, object_key, require_digest, require_size


class MemoryStore:
    """A store that lasts as long as the object."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """The location of the store, for people."""
        return "memory"

    @property
    def at_once(self) -> int:
        """Always 1: memory has no latency."""
        return 1

    def read(self, key: str) -> bytes:
        """Return the bytes under a key."""
        if key not in self._data:
            raise NotFoundError(key, (self.url,))
        return self._data[key]

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Return the bytes under a key and their etag."""
        data = self._data.get(key)
        return None if data is None else (data, _etag(data))

    def size(self, key: str) -> int:
        """Return the number of bytes under a key."""
        return len(self.read(key))

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes under a key, in one chunk."""
        if data := self.read(key)[start:end]:
            yield data

    def fetch(self, key: str, into: Path, progress: Progress | None = None, size: int | None = None) -> str:
        """Copy the bytes under a key to a new file."""
        require_size(self, key, size)
        data = self.read(key)
        with into.open("xb") as file:
            file.write(data)
        if progress:
            progress(len(data))
        return _etag(data)

    def create(self, sources: Mapping[str, Source], progress: Progress | None = None) -> None:
        """Store objects."""
        objects = {sha256: data if isinstance(data, bytes) else data.read_bytes() for sha256, data in sources.items()}
        for sha256, data in objects.items():
            require_digest(sources[sha256], sha256, _etag(data))
        with self._lock:
            self._data.update({object_key(sha256): data for sha256, data in objects.items()})
        if progress:
            progress(sum(map(len, objects.values())))

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace a document if it has not changed since it was read."""
        with self._lock:
            etag = _etag(self._data[key]) if key in self._data else None
            if etag != expected:
                raise ConflictError(key, expected, etag)
            self._data[key] = data
        return _etag(data)

    def swap_all(self, swaps: Sequence[Swap]) -> list[Outcome[str]]:
        """Replace many documents, each if it has not changed since it was read."""
        return [outcome(partial(self.swap, swap.key, swap.data, swap.expected)) for swap in swaps]

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Iterate over the keys that start with `prefix`, each with its etag."""
        with self._lock:
            etags = sorted((key, _etag(data)) for key, data in self._data.items() if key.startswith(prefix))
        yield from etags

    def children(self, folder: str) -> list[str]:
        """Return the names of keys and folders directly in a folder."""
        below = (key[len(folder) :].partition("/") for key, _ in self.keys(folder))
        return list(dict.fromkeys(first + slash for first, slash, _ in below))

    def folder_stamp(self, folder: str) -> str | None:
        """Return None: memory has no folder stamps."""
        return None

    def settle(self, keys: Iterable[str]) -> None:
        """Do nothing: every write is complete at once."""

    def delete(self, key: str) -> None:
        """Remove a key."""
        with self._lock:
            self._data.pop(key, None)

    def spend_reserve(self) -> bool:
        """Return False: no space is reserved."""
        return False


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
