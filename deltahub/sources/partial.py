"""What interrupted downloads got, in the folder `partial/` of a cache: the next download of the same goes on there.

It stays for a week. What is called `<sha256>.part` is the start of a file with that digest; its bytes are written there as they come,
so that they are there however the process ended.
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
from deltahub.files import open_file
from deltahub.rights import make_folder, make_root, take_after

PARTIAL: Final = "partial"  # in the cache
_KEPT: Final = 7 * 86400.0  # seconds


def forget_old(folder: Path) -> None:
    """Remove what was kept for a week; what is of the future by more was made by a clock that was wrong."""
    for old in folder.glob("*.*"):
        with contextlib.suppress(OSError):
            if abs(time.time() - old.stat().st_mtime) > _KEPT:
                old.unlink()


@contextlib.contextmanager
def going_on(folder: Path | None, sha256: str | None, into: Path) -> Iterator[BinaryIO]:
    """Open the file to download to, with what an earlier download of the same content got; it is moved to its place at the end.

    Of several processes that download the same, and where nothing can be kept, each writes a file of its own.

    Args:
        folder: in which it is kept; None to keep nothing.
        sha256: that the whole must have, 64 hex digits; None if it is unknown. The caller checks it.
        into: its place, which is new.

    Yields:
        The file, open for reading and writing. What is there may be wrong.
    """
    with contextlib.ExitStack() as held:
        part = _part(held, folder, sha256) if folder and sha256 else None
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


def _part(held: contextlib.ExitStack, folder: Path, sha256: str) -> Path | None:
    """The file that is kept, which nobody else writes as long as `held` lasts; None if there can be none."""
    import filelock  # late: 30 ms that only downloads need

    part, lock = folder / f"{sha256}.part", folder / f"{sha256}.lock"
    try:
        make_root(folder.parent)
        make_folder(folder.parent, folder)
        forget_old(folder)
        held.enter_context(filelock.FileLock(lock, timeout=0))
        held.callback(lambda: lock.unlink(missing_ok=True))
        new = not part.exists()
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666))
        open_file(part).close()  # it is no pipe and no device
        if new:
            take_after(folder.parent, [part])
    except (OSError, DeltaHubError, NotImplementedError):
        return None
    return part
