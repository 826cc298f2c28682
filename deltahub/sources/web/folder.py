"""A checkpoint folder at a URL, on any web server: no directory listing is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import starmap
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from deltahub.checkpoint.checkpoint import CARD, CONFIG, WEIGHTS, listed_files, manifest_of, parse_document
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.checkpoint.safetensors_header import tensor_entries
from deltahub.errors import IntegrityError, NotFoundError, StorageError
from deltahub.files.atomic import sha256_file
from deltahub.link import Link, shown
from deltahub.sources.web.client import Web
from deltahub.sources.web.download import Download, small, start
from deltahub.stores.base import Progress

_CONFIG: Final = 8 << 20  # bytes at most
_CARD: Final = 4 << 20
_HEADER: Final = 64 << 10  # bytes; enough for most headers
_REMEDY: Final = "It was changed since it was saved, or is being changed. Ask its owner to publish it again."


class WebFolder:
    """The folder at a link; its config and card are read at once, and only the header of its tensors.

    Args:
        kept: the folder for partial files of failed downloads.

    Raises:
        NotFoundError: the config does not exist.
        CheckpointError: it is not a config, or not of a whole delta.
        IntegrityError: the weights are not those listed in the config.
        StorageError: it is too large.
    """

    def __init__(self, web: Web, link: Link, kept: Path) -> None:
        self._web, self._url, self._kept = web, link.url, kept
        address = shown(self._address(CONFIG))
        config = small(web, self._address(CONFIG), _CONFIG)
        if config is None:
            raise NotFoundError(str(link), (address,), _repo(link.url))
        document = parse_document(config, address)
        listed = listed_files(document, address, "Ask its owner to save the delta again.")
        self._refuse_large(listed)
        card = None if CARD in document["files"] else small(web, self._address(CARD), _CARD)
        self._small = {CONFIG: config} | ({CARD: card} if card is not None else {})
        self.config_sha256 = hashlib.sha256(config).hexdigest()
        self.manifest = self._manifest(document, next(entry for entry in listed if entry.path == WEIGHTS))

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None) -> None:
        """Download and verify one file.

        Raises:
            IntegrityError: it is not the file listed in the config; nothing is left at the target path.
        """
        if entry.path in self._small:
            into.write_bytes(self._small[entry.path])
            if progress:
                progress(entry.size)
        else:
            Download(self._web, self._address(entry.path), into, self._kept, entry.size).run(progress)
        actual, size = sha256_file(into)
        if actual != entry.sha256:
            into.unlink()
            address, expected = shown(self._address(entry.path)), f"sha256:{entry.sha256}, {entry.size} bytes"
            raise IntegrityError(address, expected, f"sha256:{actual}, {size} bytes", _REMEDY)

    def _address(self, name: str) -> str:
        parts = urlsplit(self._url)
        path = parts.path.removesuffix(f"/{CONFIG}").rstrip("/")
        return urlunsplit((parts.scheme, parts.netloc, f"{path}/{name}", parts.query, ""))

    def _refuse_large(self, listed: list[FileEntry]) -> None:
        limits = self._web.limits
        largest, total = max(entry.size for entry in listed), sum(entry.size for entry in listed)
        if largest > limits.file or total > limits.total:
            msg = (
                f"{shown(self._url)} has {total:,} bytes, its largest file {largest:,}; {limits.total:,} and {limits.file:,} may "
                "be taken. If it is what you want, set DELTAHUB_MAX_FILE and DELTAHUB_MAX_DOWNLOAD to more."
            )
            raise StorageError(msg)

    def _manifest(self, document: Mapping[str, Any], weights: FileEntry) -> Manifest:
        address = self._address(WEIGHTS)
        first = start(self._web, address, min(_HEADER, weights.size))

        def read(begin: int, end: int) -> bytes:
            nonlocal first
            if end > len(first):
                first = start(self._web, address, end)
            if end > len(first):
                raise IntegrityError(shown(address), f"{weights.size} bytes", f"{len(first)} bytes", _REMEDY)
            return first[begin:end]

        table = tensor_entries(read, weights.size, shown(address))
        return manifest_of(document, starmap(FileEntry.of, self._small.items()), table)


def _repo(url: str) -> tuple[str, ...]:
    """Return the reference of a Hugging Face repo, whose page URL was mistaken for a folder."""
    parts = urlsplit(url)
    words = parts.path.strip("/").split("/")
    return (f"hf:{words[0]}/{words[1]}",) if parts.hostname == "huggingface.co" and len(words) >= 2 else ()
