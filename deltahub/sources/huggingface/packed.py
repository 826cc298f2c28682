"""A small delta whose files a hub serves in one response: split by the manifest, and each file verified as usual."""

from __future__ import annotations

import hashlib
import threading
from itertools import accumulate
from pathlib import Path

from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import NotFoundError, StorageError
from deltahub.sources.huggingface.download import read_pack
from deltahub.sources.huggingface.snapshot import Snapshot
from deltahub.stores.base import Progress


class Packed:
    """The files of a commit, downloaded together on first use.

    Args:
        snapshot: the commit; a file that fails verification is downloaded from it separately.
        manifest: of the delta.
        path: where the hub serves the files.
    """

    def __init__(self, snapshot: Snapshot, manifest: Manifest, path: str) -> None:
        self._snapshot, self._manifest, self._path = snapshot, manifest, path
        self._files: dict[str, bytes] | None = None
        self._fetching = threading.Lock()

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None = None) -> None:
        """See `Snapshot.fetch`."""
        with self._fetching:
            if self._files is None:
                self._files = self._parted()
        data = self._files.get(entry.path)
        if data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            self._snapshot.fetch(entry, into, progress)
            return
        with into.open("xb") as file:
            file.write(data)
        if progress:
            progress(entry.size)

    def _parted(self) -> dict[str, bytes]:
        entries = self._manifest.files
        try:
            data = read_pack(self._snapshot.calls, self._snapshot.repo, self._path, self._manifest.size)
        except (NotFoundError, StorageError):
            return {}
        ends = list(accumulate(entry.size for entry in entries))
        return {entry.path: data[end - entry.size : end] for entry, end in zip(entries, ends, strict=True)}
