"""Links as a source: deltas at http(s) URLs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames, Seen
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import IntegrityError, NotCachedError, UnreachableError
from deltahub.link import Link
from deltahub.log import LOGGER
from deltahub.sources.base import Resolved, pause
from deltahub.sources.partial import PARTIAL
from deltahub.sources.web.bundle import ENDING, WebBundle, digest_in
from deltahub.sources.web.client import Limits, Web
from deltahub.sources.web.folder import WebFolder
from deltahub.stores.base import Progress


class WebSource:
    """Deltas at URLs.

    Args:
        cache: holds pulled deltas.
        names: records what links resolved to when last pulled.
        forbidden: why the network may not be used, as a clause; None if it may be used.
        limits: sizes, timeouts and attempts; by default from the environment.
        pause: waits for a number of seconds.
    """

    def __init__(
        self,
        cache: Cache,
        names: CachedNames,
        forbidden: str | None = None,
        limits: Limits | None = None,
        pause: Callable[[float], None] = pause,
    ) -> None:
        self._cache, self._names, self._forbidden = cache, names, forbidden
        self._limits, self._pause = limits, pause

    def resolve(self, link: Link, *, fresh: bool = False, progress: Progress | None = None) -> Resolved:
        """Resolve a link; a pinned and cached one needs no network.

        Args:
            fresh: ignore the cache.
            progress: receives the bytes of a bundle, which must be downloaded to resolve the link.

        Raises:
            NotFoundError: there is no delta.
            NotCachedError: the network may not be used, and the link was never pulled.
            UnreachableError: the server does not answer, and the link was never pulled.
            IntegrityError: it is damaged, or not the one pinned by the link.
            StorageError: it is too large, or the server refuses.
        """
        seen = None if fresh else self._recalled(link)
        if self._forbidden:
            if seen is None:
                raise NotCachedError(str(link), (), self._names.near(link.path), str(link), self._forbidden)
            LOGGER.info("%s, so %s is what it was when last pulled: %s", self._forbidden, link, seen.digest)
            return seen
        if seen and link.pin:
            return seen
        try:
            return self._fetched(link, progress, fresh=fresh)
        except UnreachableError as error:
            if seen is None:
                raise
            LOGGER.warning("%s Until then %s is what it was when last pulled: %s", error, link, seen.digest)
            return seen

    def _fetched(self, link: Link, progress: Progress | None, *, fresh: bool) -> Resolved:
        web, kept = Web(self._limits or Limits.read(), self._pause), self._cache.root / PARTIAL
        found: WebBundle | WebFolder
        if urlsplit(link.url).path.endswith(ENDING):
            if not fresh and (held := self._held_bundle(web, link)):
                return held
            found = WebBundle(web, link, self._cache.root, kept, progress)
            also, what = found.file_sha256, "the bundle"
        else:
            found = WebFolder(web, link, kept)
            also, what = found.config_sha256, "its config"
        digest = found.manifest.digest
        if link.pin and link.pin not in (digest.removeprefix("sha256:"), also):
            there = f"sha256:{also} ({what}) and {digest} (the delta)"
            raise IntegrityError(link.shown, f"sha256:{link.pin}", there, "Ask its owner what was changed.")
        return Resolved(link.pinned(digest), digest, found.manifest, found.fetch)

    def _held_bundle(self, web: Web, link: Link) -> Resolved | None:
        """Return the cached delta of a bundle, identified by the start of the bundle, without downloading the rest."""
        digest = digest_in(web, link)
        manifest = self._names.manifest(digest) if link.pin in (None, digest.removeprefix("sha256:")) else None
        return self._held(link, digest, manifest) if manifest else None

    def _recalled(self, link: Link) -> Resolved | None:
        """Return what a link resolved to when last pulled, if it is cached."""
        seen: Seen | None = self._names.recall(link)
        manifest = self._names.manifest(seen.digest) if seen else None
        return self._held(link, seen.digest, manifest) if seen and manifest else None

    def _held(self, link: Link, digest: str, manifest: Manifest) -> Resolved:
        """Return a cached delta; it is downloaded again only if the cached copy is damaged."""

        def fetch(entry: FileEntry, into: Path, progress: Progress | None) -> None:
            if self._forbidden:
                why = f"It is damaged in the cache. {self._forbidden}"
                raise NotCachedError(str(link), (), (), str(link), why)
            found = self._fetched(link.pinned(digest), progress, fresh=True)
            found.fetch(entry, into, progress)

        return Resolved(link.pinned(digest), digest, manifest, fetch)
