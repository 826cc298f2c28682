"""Syncing of many new files to disk at once.

`fsync` syncs one file after the other. On Linux, one call of `syncfs` syncs a whole file system, which is far cheaper for many
small files: it waits for the disk once. It is used only where it reliably reports errors and reaches the disk: on Linux since
5.8, and not over a network or on a file system in user space.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from deltahub.files.atomic import sync_file, sync_folders

MANY: Final = 32  # from this many files on one call is cheaper, though it also writes other programs' unwritten data
_SINCE: Final = (5, 8)  # Linux version; earlier ones did not report write errors
_KNOWN: Final = frozenset(  # the f_type of statfs(2)
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0x2FC12FC1,  # zfs
        0x01021994,  # tmpfs
    }
)


class SyncBatch:
    """A sync of new files and renames to disk.

    Args:
        folder: a folder on the file system. It is opened before anything is written, so that every write error
            from then on is reported.
        count: the expected number of files.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._whole: int | None = None
        if count >= MANY and sys.platform == "linux" and _release() >= _SINCE:
            self._whole = os.open(folder, os.O_RDONLY)
            if file_system(self._whole) not in _KNOWN:
                self._close()

    def __enter__(self) -> Self:
        """Return the object itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the folder."""
        self._close()

    def files(self, paths: Collection[Path]) -> None:
        """Flush the bytes of files to disk.

        Raises:
            OSError: they cannot be written.
        """
        if self._whole is not None and paths:
            syncfs(self._whole)
            return
        for path in paths:
            sync_file(path)

    def folders(self, paths: Collection[Path]) -> None:
        """Flush the entries of folders to disk, so that renames into them survive a power loss.

        Raises:
            OSError: they cannot be written.
        """
        if self._whole is not None and paths:
            syncfs(self._whole)
            return
        sync_folders(paths)

    def _close(self) -> None:
        if self._whole is not None:
            os.close(self._whole)
            self._whole = None


def syncfs(descriptor: int) -> None:
    """Flush a whole file system to disk: `syncfs(2)`.

    Args:
        descriptor: an open file or folder on it.

    Raises:
        OSError: a write since the descriptor was opened has failed.
    """
    import ctypes  # late import: needed only when writing many files

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def file_system(descriptor: int) -> int:
    """Return the file system type of an open file or folder: `f_type` of `fstatfs(2)`; 0 if unknown."""
    import ctypes

    buffer = ctypes.create_string_buffer(512)  # struct statfs starts with f_type, a long, and is smaller
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.c_long.from_buffer(buffer).value if libc.fstatfs(descriptor, buffer) == 0 else 0


def _release() -> tuple[int, ...]:
    """Return the first two numbers of the kernel's version."""
    parts = os.uname().release.split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)
