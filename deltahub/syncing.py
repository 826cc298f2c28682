"""Making many new files durable at once.

A file is synced by `fsync`, one after the other. Linux can also sync a whole file system by one call, `syncfs`, which for many
small files is far cheaper: it waits for the disk once. It is used where it is known to report what went wrong and to reach the
disk: on Linux since 5.8, and not over a network or a file system in user space.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from deltahub.files import sync_file, sync_folders

MANY: Final = 32  # files from which on one call is cheaper, though it also writes what others left unwritten
_SINCE: Final = (5, 8)  # of Linux: before, errors of writing were not reported
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


class Syncing:
    """Syncs new files and renames.

    Args:
        folder: on the file system concerned. It is opened before anything is written, so that every error of writing
            from then on is reported.
        count: how many files there will be.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._whole: int | None = None
        if count >= MANY and sys.platform == "linux" and _release() >= _SINCE:
            self._whole = os.open(folder, os.O_RDONLY)
            if file_system(self._whole) not in _KNOWN:
                self._close()

    def __enter__(self) -> Self:
        """Nothing more."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what was opened."""
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
        """Flush the entries of folders to disk, so that renames into them outlast a power loss.

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
    """Flush all of a file system to disk: `syncfs(2)`.

    Args:
        descriptor: of an open file or folder on it.

    Raises:
        OSError: something that was written since the descriptor was opened could not be.
    """
    import ctypes  # late: only who writes many files needs it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def file_system(descriptor: int) -> int:
    """The kind of file system that an open file or folder is on: `f_type` of `fstatfs(2)`; 0 if that is unknown."""
    import ctypes

    buffer = ctypes.create_string_buffer(512)  # struct statfs starts with f_type, a long, and is smaller
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.c_long.from_buffer(buffer).value if libc.fstatfs(descriptor, buffer) == 0 else 0


def _release() -> tuple[int, ...]:
    """The first two numbers of the kernel's version."""
    parts = os.uname().release.split(".")[:2]
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts)
