"""Where uploads lie while they come: a folder of each hub's own, in the system's temporary folder (TMPDIR moves it).

A hub that is killed leaves its folder behind, with whatever was coming in. The next hub on this machine removes it: every process of a
hub holds a lock on its folder, and one that nobody holds belongs to nobody any more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

PREFIX: Final = "deltahub-serve-"
_LOCK: Final = "in-use"


@contextlib.contextmanager
def spool() -> Iterator[Path]:
    """A new folder, in which this process and those that it starts put temporary files; gone afterwards.

    Raises:
        OSError: the system's temporary folder is full or not writable.
    """
    sweep()
    before = os.environ.get("TMPDIR")
    fresh = Path(tempfile.mkdtemp(prefix="deltahub-new-"))
    (fresh / _LOCK).touch()
    holder = hold(fresh)
    folder = fresh.rename(fresh.with_name(PREFIX + fresh.name))  # only now may others try its lock
    try:
        _move(str(folder))
        yield folder
    finally:
        _move(before)
        holder.close()
        shutil.rmtree(folder, ignore_errors=True)


def hold(folder: Path) -> IO[bytes]:
    """Say that this process uses a folder, until it closes what it gets or ends."""
    file = (folder / _LOCK).open("rb")
    with contextlib.suppress(ImportError):  # not on Windows, where nothing is swept
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def sweep() -> None:
    """Remove the folders of hubs that were killed."""
    try:
        import fcntl
    except ImportError:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as file:  # another user's, or just being made
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _move(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = None  # it is looked up again
