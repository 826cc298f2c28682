"""Git's ids of a commit's files: of a large file, the id of the LFS pointer in its place; of any other, the id of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deltahub.checkpoint.manifest import FileEntry
from deltahub.server.repositories import Commit, Repository


@dataclass(frozen=True)
class Blob:
    """A file as git keeps it.

    Attributes:
        entry: the file.
        oid: git's blob id, 40 hex digits.
        is_large: whether clients treat it as a large file, and so learn its sha256.
    """

    entry: FileEntry
    oid: str
    is_large: bool

    def lfs(self, key: str) -> dict[str, Any]:
        """Return the field ``lfs`` of a large file; nothing for any other.

        Args:
            key: name of the field with the sha256.
        """
        if not self.is_large:
            return {}
        size = len(_pointer(self.entry))
        return {"lfs": {key: self.entry.sha256, "size": self.entry.size, "pointerSize": size}}


def blobs_of(repository: Repository, commit: Commit, files: Iterable[FileEntry]) -> list[Blob]:
    """Return the blobs of some files of a commit, in their order. Small files are read, the first time they are asked for."""
    entries, is_large = list(files), repository.large_files(commit)
    large_paths = {entry.path for entry in entries if is_large(entry)}
    oids = repository.state.git_oids(entry for entry in entries if entry.path not in large_paths)
    return [
        Blob(entry, oids[entry.path] if entry.path in oids else pointer_oid(entry), entry.path in large_paths)
        for entry in entries
    ]


def pointer_oid(entry: FileEntry) -> str:
    """Return git's blob id of a large file: the sha1 of its pointer. The file itself is not read."""
    pointer = _pointer(entry)
    return hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()


def _pointer(entry: FileEntry) -> bytes:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.sha256}\nsize {entry.size}\n"
    return text.encode()
