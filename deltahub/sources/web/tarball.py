"""A bundle behind a link: read as a bundle on the disk is, so that no tar trick has a way in."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Final

from deltahub.bundle import Bundled, import_bundle
from deltahub.cache import STAGING
from deltahub.errors import ReferenceSyntaxError
from deltahub.files import sha256_file
from deltahub.link import Link, shown
from deltahub.manifest import FileEntry, Manifest
from deltahub.registry.registry import Registry
from deltahub.sources.web.asking import Web
from deltahub.sources.web.downloading import Download
from deltahub.stores.base import Progress
from deltahub.stores.local import LocalStore

ENDING: Final = ".tar"


class WebBundle:
    """One delta of a bundle, which is fetched and checked at once, to the last byte.

    Args:
        cache: the folder of the cache; what is fetched lies there until nobody needs this any more.
        kept: where what was got is kept if it breaks off.

    Raises:
        NotFoundError: nothing is there, or the bundle does not have the delta.
        IntegrityError: it is no whole bundle.
        ReferenceSyntaxError: it has several deltas, and the link names none of them.
        StorageError: it is too large.
    """

    def __init__(self, web: Web, link: Link, cache: Path, kept: Path, progress: Progress | None = None) -> None:
        (cache / STAGING).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=cache / STAGING, prefix="bundle-"))
        self._cleared = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = folder / "bundle.tar"
        Download(web, link.url, file, kept).run(progress)
        self.file_sha256 = sha256_file(file)[0]
        self._registry = Registry(LocalStore(folder / "registry"), shown(link.url))
        held = import_bundle(file, self._registry)
        file.unlink()
        inside = link.inside
        if inside is None:
            if len(held) != 1:
                raise ReferenceSyntaxError(_several(link, held))
            path, version = held[0].name, None
        else:
            path, version = inside.path, inside.version
        document = self._registry.document(path)
        found = document.resolve(version)
        self.manifest: Manifest = self._registry.manifest(document.versions[found].digest)

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None) -> None:
        """Copy one file to a new place, checked; its bytes were counted when the bundle was fetched."""
        self._registry.fetch(entry, into)


def _several(link: Link, held: list[Bundled]) -> str:
    names = [f"{each.name}@{version}" for each in held for version in each.versions]
    return f"The bundle {link} has several deltas: {', '.join(names)}. Name one of them: {link.shown}#{names[0]}"
