"""Temporary files of incoming uploads: a folder per hub in the system's temporary folder (TMPDIR changes it).

A killed hub leaves its folder with unfinished uploads. The next hub on this machine removes it: every process of a hub holds a
lock on its folder, so an unlocked folder is abandoned.
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
    """Create a folder for the temporary files of this process and its children; remove it afterwards.

    Raises:
        OSError: the system's temporary folder is full or not writable.
    """
    sweep()
    before = os.environ.get("TMPDIR")
    fresh = Path(tempfile.mkdtemp(prefix="deltahub-new-"))
    (fresh / _LOCK).touch()
    holder = hold(fresh)
    folder = fresh.rename(fresh.with_name(PREFIX + fresh.name))  # not visible to `sweep` before it is locked
    try:
        _move(str(folder))
        yield folder
    finally:
        _move(before)
        holder.close()
        shutil.rmtree(folder, ignore_errors=True)


def hold(folder: Path) -> IO[bytes]:
    """Hold the lock on a folder until the returned file is closed or the process ends."""
    file = (folder / _LOCK).open("rb")
    with contextlib.suppress(ImportError):  # not on Windows, where nothing is swept
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def sweep() -> None:
    """Remove the folders of killed hubs."""
    try:
        import fcntl
    except ImportError:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # OSError: the folder is in use, belongs to another user, or is just being created.
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)


def _move(folder: str | None) -> None:
    if folder is None:
        os.environ.pop("TMPDIR", None)
    else:
        os.environ["TMPDIR"] = folder
    tempfile.tempdir = None  # looked up again
