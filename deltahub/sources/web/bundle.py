"""A bundle at a URL, imported with the same checks against malicious tar files as a local bundle."""

from __future__ import annotations

import io
import shutil
import tarfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deltahub.cache.cache import STAGING
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import IntegrityError, NotFoundError, ReferenceSyntaxError
from deltahub.files.atomic import STAGE, sha256_file
from deltahub.files.documents import canonical_json
from deltahub.files.permissions import make_folder, make_root
from deltahub.link import Link, shown
from deltahub.reference import Digest
from deltahub.registry.archive import read_index
from deltahub.registry.bundle import import_bundle
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.registry import Registry
from deltahub.sources.web.client import Web
from deltahub.sources.web.download import Download, start
from deltahub.stores.base import Progress
from deltahub.stores.local import LocalStore
from deltahub.text.suggestions import closest

ENDING: Final = ".tar"
LARGEST_INDEX: Final = 64 << 20  # bytes
_INDEX: Final = 64 << 10  # bytes; enough for most indexes


class WebBundle:
    """One delta of a bundle; the whole bundle is downloaded and verified at once.

    Args:
        cache: the cache folder; the download stays there while this object is in use.
        kept: the folder for partial files of failed downloads.

    Raises:
        NotFoundError: the bundle does not exist, or does not contain the delta.
        IntegrityError: it is not a complete bundle.
        ReferenceSyntaxError: it contains several deltas, and the link names none.
        StorageError: it is too large.
    """

    def __init__(self, web: Web, link: Link, cache: Path, kept: Path, progress: Progress | None = None) -> None:
        # A folder left by a killed process is removed like any staging folder.
        folder = cache / STAGING / f"{STAGE}{uuid.uuid4().hex}"
        make_root(cache)
        make_folder(cache, folder)
        self._cleared = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        file = folder / "bundle.tar"
        Download(web, link.url, file, kept).run(progress)
        self.file_sha256 = sha256_file(file)[0]
        self._registry = Registry(LocalStore(folder / "registry"), shown(link.url))
        try:
            copies = import_bundle(file, self._registry)
        except IntegrityError as error:
            remedy = "Ask its owner to publish it again."
            raise IntegrityError(f"The bundle {shown(link.url)}", error.expected, error.found, remedy) from error
        file.unlink()
        document = _wanted(link, [self._registry.document(copy.name) for copy in copies])
        version = document.resolve(link.inside.version if link.inside else None)
        self.manifest: Manifest = self._registry.manifest(document.versions[version].digest)

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None) -> None:
        """Copy and verify one file; progress already counted its bytes when the bundle was downloaded."""
        self._registry.fetch(entry, into)


def digest_in(web: Web, link: Link) -> Digest:
    """Return the digest of a link's delta from the index at the start of a bundle, without downloading the rest.

    Raises:
        NotFoundError: the bundle does not exist, or does not contain the delta.
        IntegrityError: it does not start with an index.
        ReferenceSyntaxError: it contains several deltas, and the link names none.
    """
    data = start(web, link.url, _INDEX)
    try:
        size = tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape").size
    except tarfile.TarError:
        size = 0  # `read_index` reports the error
    index_size = tarfile.BLOCKSIZE + size + -size % tarfile.BLOCKSIZE
    if len(data) < index_size <= LARGEST_INDEX:
        data = start(web, link.url, index_size)
    deltas = read_index(io.BytesIO(data), shown(link.url))["deltas"]
    document = _wanted(link, [ReferenceDocument.from_bytes(canonical_json(delta)) for delta in deltas])
    return document.versions[document.resolve(link.version)].digest


def _wanted(link: Link, documents: Sequence[ReferenceDocument]) -> ReferenceDocument:
    """Return the delta of a bundle that a link names."""
    if link.inside is None:
        if len(documents) == 1:
            return documents[0]
        names = [f"{document.name}@{version}" for document in documents for version in document.versions]
        msg = f"The bundle {link} has several deltas: {', '.join(names)}. Name one of them: {link.shown}#{names[0]}"
        raise ReferenceSyntaxError(msg)
    for document in documents:
        if document.name == link.inside.path:
            return document
    names = [document.name for document in documents]
    raise NotFoundError(link.inside.path, (link.shown,), closest(link.inside.path, names))
