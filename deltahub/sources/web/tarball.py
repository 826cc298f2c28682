"""A bundle behind a link: read as a bundle on the disk is, so that no tar trick has a way in."""

from __future__ import annotations

import io
import shutil
import tarfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deltahub.archive import read_index
from deltahub.bundle import import_bundle
from deltahub.cache.cache import STAGING
from deltahub.errors import IntegrityError, NotFoundError, ReferenceSyntaxError
from deltahub.files import STAGE, sha256_file
from deltahub.link import Link, shown
from deltahub.manifest import FileEntry, Manifest, canonical_json
from deltahub.nearest import closest
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.registry import Registry
from deltahub.rights import make_folder, make_root
from deltahub.sources.web.asking import Web
from deltahub.sources.web.downloading import Download, start
from deltahub.stores.base import Progress
from deltahub.stores.local import LocalStore

ENDING: Final = ".tar"
LARGEST_INDEX: Final = 64 << 20  # bytes
_INDEX: Final = 64 << 10  # bytes that most indexes fit into


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
        folder = cache / STAGING / f"{STAGE}{uuid.uuid4().hex}"  # what a killed process leaves goes as any stage does
        make_root(cache)
        make_folder(cache, folder)
        self._cleared = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = folder / "bundle.tar"
        Download(web, link.url, file, kept).run(progress)
        self.file_sha256 = sha256_file(file)[0]
        self._registry = Registry(LocalStore(folder / "registry"), shown(link.url))
        try:
            held = import_bundle(file, self._registry)
        except IntegrityError as error:
            remedy = "Ask its owner to publish it again."
            raise IntegrityError(f"The bundle {shown(link.url)}", error.expected, error.found, remedy) from error
        file.unlink()
        document = _wanted(link, [self._registry.document(each.name) for each in held])
        version = document.resolve(link.inside.version if link.inside else None)
        self.manifest: Manifest = self._registry.manifest(document.versions[version].digest)

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None) -> None:
        """Copy one file to a new place, checked; its bytes were counted when the bundle was fetched."""
        self._registry.fetch(entry, into)


def digest_in(web: Web, link: Link) -> str:
    """The digest of the delta that a link means, by the index that a bundle starts with; the rest is not fetched.

    Raises:
        NotFoundError: nothing is there, or the bundle does not have the delta.
        IntegrityError: it starts with no index.
        ReferenceSyntaxError: it has several deltas, and the link names none of them.
    """
    data = start(web, link.url, _INDEX)
    try:
        size = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").size
    except tarfile.TarError:
        size = 0  # the index says what is wrong
    whole = tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE
    if len(data) < whole <= LARGEST_INDEX:
        data = start(web, link.url, whole)
    deltas = read_index(io.BytesIO(data), shown(link.url))["deltas"]
    document = _wanted(link, [ReferenceDocument.from_bytes(canonical_json(delta)) for delta in deltas])
    return document.versions[document.resolve(link.version)].digest


def _wanted(link: Link, held: Sequence[ReferenceDocument]) -> ReferenceDocument:
    """The delta of a bundle that a link means."""
    if link.inside is None:
        if len(held) == 1:
            return held[0]
        names = [f"{document.name}@{version}" for document in held for version in document.versions]
        msg = f"The bundle {link} has several deltas: {', '.join(names)}. Name one of them: {link.shown}#{names[0]}"
        raise ReferenceSyntaxError(msg)
    for document in held:
        if document.name == link.inside.path:
            return document
    names = [document.name for document in held]
    raise NotFoundError(link.inside.path, (link.shown,), closest(link.inside.path, names))
