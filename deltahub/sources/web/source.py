"""Links as sources: deltas at http(s) URLs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import ConfigError, IntegrityError
from deltahub.link import SOURCE, Link
from deltahub.reference import DeltaPath, Digest, Reference
from deltahub.sources.base import Resolved, pause
from deltahub.sources.partial import PARTIAL
from deltahub.sources.web.bundle import ENDING, WebBundle, digest_in
from deltahub.sources.web.client import Limits, Web
from deltahub.sources.web.folder import WebFolder
from deltahub.stores.base import Progress


def _refusal(reason: str) -> Callable[..., NoReturn]:
    """Return a method of a link that refuses, because a link leads to one delta."""

    def refuse(source: WebSource, *_args: object, **_options: object) -> NoReturn:
        msg = (
            f"{source.place} is a link to one delta, so {reason}. Pull it, and push its folder to a registry to give it a name: "
            "deltahub push FOLDER --to local"
        )
        raise ConfigError(msg)

    return refuse


class WebSource:
    """A link: the source of the one delta at its URL, which can only be pulled.

    Args:
        link: the link.
        cache: holds pulled deltas.
        names: records what links resolved to when last pulled.
        limits: sizes, timeouts and attempts; by default from the environment.
        pause: waits for a number of seconds.
    """

    name = SOURCE
    remote = True

    def __init__(
        self,
        link: Link,
        cache: Cache,
        names: CachedNames,
        limits: Limits | None = None,
        pause: Callable[[float], None] = pause,
    ) -> None:
        self._link, self._cache, self._names = link, cache, names
        self._limits, self._pause = limits, pause

    @property
    def place(self) -> str:
        """The address without parts that may be secret."""
        return self._link.shown

    def resolve(self, reference: Reference | Link, progress: Progress | None = None) -> Resolved:
        """Resolve the link; a pinned and cached one needs no network.

        Args:
            reference: the link.
            progress: receives the bytes of a bundle, which must be downloaded to resolve the link.

        Raises:
            NotFoundError: there is no delta.
            UnreachableError: the server does not answer.
            IntegrityError: it is damaged, or not the one pinned by the link.
            StorageError: it is too large, or the server refuses.
        """
        link = self._link
        meaning = self._names.recall(link) if link.pin else None
        if meaning and (manifest := self._names.manifest(meaning.digest)):
            return self._held(meaning.digest, manifest)
        web = self._web()
        if _is_bundle(link):  # the start of a bundle tells which delta it is
            digest = digest_in(web, link)
            manifest = self._names.manifest(digest) if link.pin in (None, digest.hex) else None
            if manifest:
                return self._held(digest, manifest)
        delta = self._fetched(web, link, progress)
        return Resolved(link.pinned(delta.manifest.digest), delta.manifest.digest, delta.manifest, delta.fetch)

    def _web(self) -> Web:
        return Web(self._limits or Limits.read(), self._pause)

    def _fetched(self, web: Web, link: Link, progress: Progress | None) -> WebBundle | WebFolder:
        kept = self._cache.root / PARTIAL
        delta: WebBundle | WebFolder
        if _is_bundle(link):
            delta = WebBundle(web, link, self._cache.root, kept, progress)
            file_sha256, file_name = delta.file_sha256, "the bundle"
        else:
            delta = WebFolder(web, link, kept)
            file_sha256, file_name = delta.config_sha256, "its config"
        digest = delta.manifest.digest
        if link.pin and link.pin not in (digest.hex, file_sha256):
            actual = f"sha256:{file_sha256} ({file_name}) and {digest} (the delta)"
            raise IntegrityError(link.shown, Digest.of_hex(link.pin), actual, "Ask its owner what was changed.")
        return delta

    def _held(self, digest: Digest, manifest: Manifest) -> Resolved:
        """Return a cached delta; it is downloaded again, once for all files, only if the cached copy is damaged."""
        link, lock = self._link.pinned(digest), threading.Lock()
        downloads: list[WebBundle | WebFolder] = []

        def fetch(entry: FileEntry, into: Path, progress: Progress | None) -> None:
            with lock:
                if not downloads:
                    downloads.append(self._fetched(self._web(), link, progress))
            downloads[0].fetch(entry, into, progress)

        return Resolved(link, digest, manifest, fetch)

    def neighbours(self, path: DeltaPath) -> tuple[DeltaPath, ...]:
        """Return no names: a link leads to one delta."""
        return ()

    document = _refusal("it has no history")
    search = _refusal("it cannot be searched")
    publish = _refusal("it cannot be pushed to")
    amend = _refusal("its delta cannot be changed")


def _is_bundle(link: Link) -> bool:
    return urlsplit(link.url).path.endswith(ENDING)
