"""Reading a delta in the cache while other processes may remove it.

    reading/<64>.<32>      a reader wants this delta to stay; what stands after the dot is the reader's own

At first nobody says so, which costs nothing: what was just got is hardly ever removed. A reader that finds a delta gone says that it
wants it, gets it again, and then it stays until the reader is done. What a killed reader left holds for an hour.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from deltahub.errors import CheckpointError, IntegrityError

READING: Final = "reading"
_HOLDS: Final = 3600.0  # seconds
_TRIES: Final = 5  # a process that was about to remove it when it was asked for moves it away and back, once

T = TypeVar("T")


def read_cached(get: Callable[[], Path], read: Callable[[Path], T]) -> T:
    """Read a delta; if it is in a cache and other processes remove it under the reader, it is got again.

    Args:
        get: brings the delta to a folder, and gives the folder.
        read: reads from the folder what is needed, and fails if a file is gone.
    """
    with contextlib.ExitStack() as wanted:
        for number in range(_TRIES):
            folder = get()
            before = _state(folder)
            try:
                return read(folder)
            except (CheckpointError, IntegrityError, OSError):  # on NFS a file that is gone can be a stale one
                still_there = before is not None and _state(folder) == before
                if still_there or not _in_cache(folder) or number == _TRIES - 1:
                    raise
            wanted.enter_context(_wanted(folder))
    raise AssertionError  # the last try returns or raises


def being_read(root: Path, digits: str) -> bool:
    """Whether a reader said that it wants a delta of a cache to stay.

    Args:
        root: the cache.
        digits: of the delta's digest.
    """
    marks = (root / READING).glob(f"{digits}.*")
    return any(_age(mark) < _HOLDS for mark in marks)


def forget_killed(root: Path) -> None:
    """Remove what killed readers of a cache left."""
    for mark in (root / READING).glob("*.*"):
        if _age(mark) >= _HOLDS:
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _wanted(folder: Path) -> Iterator[None]:
    root = folder.parents[2]
    mark = root / READING / f"{folder.parent.name}{folder.name}.{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # whoever may not write here is left with getting it again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def _in_cache(folder: Path) -> bool:
    return len(folder.name) == 62 and len(folder.parent.name) == 2 and len(folder.parents) > 2


def _state(folder: Path) -> tuple[int, int] | None:
    """What changes when a folder is removed, or moved away and back; None if it is not there."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _age(mark: Path) -> float:
    try:
        return time.time() - mark.stat().st_mtime
    except OSError:  # its reader is done
        return _HOLDS
