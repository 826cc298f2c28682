"""State shared by all requests of a process.

A lock per repository lets commits to it run one after another in a process, so that none starves. Other processes are not covered; compare-and-swap of the reference document decides between them.
"""

from __future__ import annotations

import asyncio
import bisect
import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final
from weakref import WeakValueDictionary

from starlette.requests import HTTPConnection

from deltahub.checkpoint.from_files import Read
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.files.sized_cache import SizedCache
from deltahub.reference import Digest
from deltahub.registry.actor import NOBODY
from deltahub.registry.registry import Registry
from deltahub.registry.search.catalogue import open_catalogue
from deltahub.registry.search.index import INDEXES
from deltahub.server.budget import Budget
from deltahub.server.git_attributes import DEFAULT, DEFAULT_ENTRY
from deltahub.server.quotas import Quotas
from deltahub.server.records import Records
from deltahub.server.settings import Settings
from deltahub.server.upload_urls import Signer
from deltahub.settings.environment import cache_home
from deltahub.stores.base import object_key
from deltahub.stores.threads import map_concurrently
from deltahub.text.front_matter import LARGEST, front_matter

_DIGEST: Final = 32  # bytes of a SHA-256
_SIZE: Final = 8  # bytes of the stored file size
_RECORD: Final = _DIGEST + _SIZE
_LARGEST: Final = (1 << 8 * _SIZE) - 1


class FileSizes:
    """Sizes of a set of files, looked up by sha256.

    Args:
        files: the files.
    """

    def __init__(self, files: Iterable[FileEntry]) -> None:
        records = {bytes.fromhex(entry.sha256) + min(entry.size, _LARGEST).to_bytes(_SIZE, "big") for entry in files}
        self._records = b"".join(sorted(records))

    @property
    def weight(self) -> int:
        """Approximate memory use in bytes."""
        return len(self._records) + 200

    def get(self, sha256: str) -> int | None:
        """Return the size in bytes of the file with a digest (64 hex digits); None if it is not in the set."""
        digest = bytes.fromhex(sha256)
        count = len(self._records) // _RECORD
        at = bisect.bisect_left(range(count), digest, key=self._digest)
        if at == count or self._digest(at) != digest:
            return None
        return int.from_bytes(self._records[at * _RECORD + _DIGEST : (at + 1) * _RECORD], "big")

    def _digest(self, at: int) -> bytes:
        return self._records[at * _RECORD : at * _RECORD + _DIGEST]


class RepositoryLocks:
    """An asyncio lock for each repository, kept while it is held or awaited. Waiting takes no thread."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, repository: str) -> asyncio.Lock:
        """Return the lock of a repository, ``"namespace/name"``."""
        lock = self._locks.get(repository)
        if lock is None:
            lock = self._locks[repository] = asyncio.Lock()
        return lock


_MOST_KEPT: Final = 64 << 20  # bytes of manifests and of file sizes cached in memory


class State:
    """The registry, the settings, and caches of immutable registry content.

    Args:
        registry: the registry to serve.
        settings: of the server.
        catalogue: location of a database for the catalogue; None for an SQLite file.
    """

    def __init__(self, registry: Registry, settings: Settings, catalogue: str | None = None) -> None:
        self.registry = registry.acting(NOBODY)  # routes that change it act in the name of the caller
        self.settings = settings
        self.index = open_catalogue(registry, cache_home() / INDEXES, catalogue)
        self.records = Records(registry.store)
        self.quotas = Quotas(registry)
        self.repository_locks = RepositoryLocks()
        self.signer = Signer(registry.store)
        self.bodies = Budget(settings.buffered, settings.buffered // 4)
        self.answers = Budget(2 * settings.buffered, settings.buffered)
        self._manifests: SizedCache[str, Manifest] = SizedCache(_MOST_KEPT, lambda manifest: manifest.weight)
        self._sizes: SizedCache[str, FileSizes] = SizedCache(_MOST_KEPT, lambda sizes: sizes.weight)
        self.card = lru_cache(maxsize=4096)(self._card)
        self.git_oid = lru_cache(maxsize=100_000)(self._git_oid)

    def manifest(self, digest: Digest) -> Manifest:
        """Return the manifest of a version by its digest."""
        return self._manifests.get(digest, lambda: self.registry.manifest(digest))

    def file_sizes(self, digest: Digest) -> FileSizes:
        """Return the sizes of a version's files by sha256."""
        return self._sizes.get(digest, lambda: FileSizes(self.registry.manifest(digest).files))

    def _card(self, sha256: str, size: int) -> dict[str, Any]:
        """Return the front matter of a stored card; empty if it cannot be parsed."""
        return self.card_of(FileEntry("", sha256, size), self.read)

    @staticmethod
    def card_of(entry: FileEntry, read: Read) -> dict[str, Any]:
        """Return the front matter of a card read by `read`; empty if it cannot be parsed."""
        try:
            head = read(entry, 0, min(entry.size, LARGEST)) if entry.size else b""
            return front_matter(head.decode(errors="replace"))
        except ValueError:
            return {}

    def _git_oid(self, sha256: str, size: int) -> str:
        """Return git's blob id of a file: the sha1 of its size and bytes, 40 hex digits. Reads the whole file, once."""
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        for chunk in self.chunks(sha256):
            digest.update(chunk)
        return digest.hexdigest()

    def git_oids(self, files: Iterable[FileEntry]) -> dict[str, str]:
        """Return git's blob id of each file by its path; several are read concurrently."""
        entries = list(files)
        oids = map_concurrently(
            lambda entry: self.git_oid(entry.sha256, entry.size), entries, self.registry.store.at_once
        )
        return {entry.path: oid for entry, oid in zip(entries, oids, strict=True)}

    def chunks(self, sha256: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Iterate over the bytes of a stored file; the default ``.gitattributes`` is not stored."""
        if sha256 == DEFAULT_ENTRY.sha256:
            return iter([DEFAULT[start:end]])
        return self.registry.store.chunks(object_key(sha256), start, end)

    def read(self, entry: FileEntry, start: int, end: int) -> bytes:
        """Return a range of a stored file."""
        return b"".join(self.chunks(entry.sha256, start, end))

    def base_url(self, request: HTTPConnection) -> str:
        """Return the hub's URL as the caller reaches it, without a trailing slash."""
        return (self.settings.public_url or f"{request.url.scheme}://{request.url.netloc}").rstrip("/")


def state_of(request: HTTPConnection) -> State:
    """Return the state of the application that handles a request."""
    state = request.app.state.hub
    assert isinstance(state, State)
    return state
