"""Interrupted downloads in the folder `partial/` of a cache, resumed by the next download of the same file.

They are kept for a week. `<sha256>.part` is the start of the file with that digest; bytes are written to it as they arrive, so
that they survive however the process ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from deltahub.errors import DeltaHubError
from deltahub.files.atomic import open_file
from deltahub.files.permissions import inherit_permissions, make_folder, make_root

PARTIAL: Final = "partial"  # in the cache
_KEPT: Final = 7 * 86400.0  # seconds


def forget_old(folder: Path) -> None:
    """Remove partial files older than a week, or dated more than a week in the future by a wrong clock."""
    for old in folder.glob("*.*"):
        with contextlib.suppress(OSError):
            if abs(time.time() - old.stat().st_mtime) > _KEPT:
                old.unlink()


@contextlib.contextmanager
def resumed(folder: Path | None, sha256: str | None, into: Path) -> Iterator[BinaryIO]:
    """Open the download file, containing what an earlier download of the same content got; move it into place at the end.

    A separate file is written from the start where nothing can be kept, or while another process downloads the same file.

    Args:
        folder: for partial files; None to keep nothing.
        sha256: expected digest of the whole file, 64 hex digits; None if unknown. The caller verifies it.
        into: the target path, which does not exist yet.

    Yields:
        The file, open for reading and writing. Its present content may be wrong.
    """
    with contextlib.ExitStack() as stack:
        part = _part(stack, folder, sha256) if folder and sha256 else None
        if part is None:
            with into.open("x+b") as file:
                yield file
            return
        try:
            with part.open("r+b") as file:
                yield file
        except BaseException:
            with contextlib.suppress(OSError):
                if not part.stat().st_size:
                    part.unlink()
            raise
        shutil.move(part, into)


def _part(stack: contextlib.ExitStack, folder: Path, sha256: str) -> Path | None:
    """Return the partial file, locked while `stack` lasts; None if it cannot be used."""
    import filelock  # imported lazily: takes 30 ms, and only downloads need it

    part, lock = folder / f"{sha256}.part", folder / f"{sha256}.lock"
    try:
        make_root(folder.parent)
        make_folder(folder.parent, folder)
        forget_old(folder)
        stack.enter_context(filelock.FileLock(lock, timeout=0))
        stack.callback(lambda: lock.unlink(missing_ok=True))
        new = not part.exists()
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666))
        open_file(part).close()  # it is not a pipe or device
        if new:
            inherit_permissions(folder.parent, [part])
    except (OSError, DeltaHubError, NotImplementedError):
        return None
    return part
