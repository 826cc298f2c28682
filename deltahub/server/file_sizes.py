"""Sizes of a version's files by digest, 40 bytes per file, to find which versions of a repository hold a file."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Final

from deltahub.checkpoint.manifest import FileEntry

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
