"""Disk space reserved in a registry or a cache, because operations that free a full disk write a little first.

    reserve/0 ... reserve/7        128 kB each

Removing a version or an alias, revoking a token, collecting and pruning write some thousand bytes before they delete. Where there is no space
for these, they give up one piece after the other. A push or a pull sets them aside anew once there is ample space again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from deltahub.errors import StorageError
from deltahub.files.atomic import is_full
from deltahub.files.permissions import inherit_permissions, make_folder

RESERVE: Final = "reserve"
PIECES: Final = 8  # each is also a spare file where the number of files is limited
_SIZE: Final = 128 << 10  # bytes of a piece
_AMPLE: Final = 16 << 20  # no reservation with fewer free bytes: it would take back space just given up

T = TypeVar("T")


def reserve_space(root: Path) -> None:
    """Reserve the missing pieces, if there is ample space."""
    folder = root / RESERVE
    with contextlib.suppress(OSError):
        existing_names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        missing = [folder / name for name in map(str, range(PIECES)) if name not in existing_names]
        if not missing or shutil.disk_usage(root).free < _AMPLE:
            return
        make_folder(root, folder)
        for path in missing:
            _allocate(path)
        inherit_permissions(root, missing)


def _allocate(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        if hasattr(os, "posix_fallocate"):  # zeros would take no space on a compressing file system
            os.posix_fallocate(descriptor, 0, _SIZE)
        else:
            os.write(descriptor, bytes(_SIZE))
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def release_piece(root: Path) -> bool:
    """Give up one piece.

    Returns:
        Whether there was a piece.
    """
    for name in map(str, range(PIECES)):
        with contextlib.suppress(OSError):
            (root / RESERVE / name).unlink()
            return True
    return False


def with_reserve(spend_one: Callable[[], bool], change: Callable[[], T]) -> T:
    """Run a change that frees disk space; while the disk is full, give up a reserved piece and retry.

    Args:
        spend_one: gives up one piece, and returns whether there was one.
        change: a change that can be retried after a failure.
    """
    while True:
        try:
            return change()
        except StorageError as error:
            if not is_full(error) or not spend_one():
                raise
