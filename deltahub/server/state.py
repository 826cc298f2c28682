"""What all requests of one process share."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final

from starlette.requests import HTTPConnection

from deltahub.describing import Read
from deltahub.manifest import FileEntry, Manifest
from deltahub.places import cache_home
from deltahub.registry.index import INDEXES, Index
from deltahub.registry.registry import Registry
from deltahub.server.budget import Budget
from deltahub.server.file_sizes import FileSizes
from deltahub.server.frontmatter import LARGEST, front_matter
from deltahub.server.records import Records
from deltahub.server.settings import Settings
from deltahub.server.signatures import Signer
from deltahub.server.turns import Turns
from deltahub.sized_cache import SizedCache
from deltahub.stores.base import object_key

_MOST_KEPT: Final = 64 << 20  # bytes of manifests, and of the sizes of files, that are kept in memory


class State:
    """The registry, the settings, and what was read of the registry and can never change.

    Args:
        registry: what is served.
        settings: how.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self.settings = settings
        self.index = Index.of(registry, cache_home() / INDEXES)
        self.records = Records(registry.store)
        self.turns = Turns()
        self.signer = Signer(registry.store)
        self.bodies = Budget(settings.buffered, settings.buffered // 4)
        self.answers = Budget(2 * settings.buffered, settings.buffered)
        self._manifests: SizedCache[str, Manifest] = SizedCache(_MOST_KEPT, lambda manifest: manifest.weight)
        self._sizes: SizedCache[str, FileSizes] = SizedCache(_MOST_KEPT, lambda sizes: sizes.weight)
        self.card = lru_cache(maxsize=4096)(self._card)
        self.git_oid = lru_cache(maxsize=100_000)(self._git_oid)

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a version, by its digest."""
        return self._manifests.get(digest, lambda: self.registry.manifest(digest))

    def file_sizes(self, digest: str) -> FileSizes:
        """Bytes of each file of a version, by its sha256."""
        return self._sizes.get(digest, lambda: FileSizes(self.registry.manifest(digest).files))

    def _card(self, sha256: str, size: int) -> dict[str, Any]:
        """What a card says in its front matter; nothing if that cannot be read."""
        return self.card_of(FileEntry("", sha256, size), self.read)

    @staticmethod
    def card_of(entry: FileEntry, read: Read) -> dict[str, Any]:
        """The same of a card that lies anywhere."""
        try:
            head = read(entry, 0, min(entry.size, LARGEST)) if entry.size else b""
            return front_matter(head.decode(errors="replace"))
        except ValueError:
            return {}

    def _git_oid(self, sha256: str, size: int) -> str:
        """What git calls a file: the sha1 of its size and bytes, 40 hex digits. The whole file is read for it, once."""
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        for chunk in self.registry.store.chunks(object_key(sha256)):
            digest.update(chunk)
        return digest.hexdigest()

    def read(self, entry: FileEntry, start: int, end: int) -> bytes:
        """A range of a stored file."""
        return b"".join(self.registry.store.chunks(object_key(entry.sha256), start, end))

    def base_url(self, request: HTTPConnection) -> str:
        """How the caller reaches the hub, without a slash at the end."""
        return (self.settings.public_url or f"{request.url.scheme}://{request.url.netloc}").rstrip("/")


def state_of(request: HTTPConnection) -> State:
    """The state of the application that handles a request."""
    found = request.app.state.hub
    assert isinstance(found, State)
    return found
