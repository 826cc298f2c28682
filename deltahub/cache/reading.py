"""Reading a delta in the cache while other processes may remove it.

    reading/<64>.<32>      a reader wants this delta to stay; what stands after the dot is the reader's own

At first nobody says so, which costs nothing: what was just got is hardly ever removed. A reader that finds a delta gone says that it
wants it, gets it again, and then it stays until the reader is done. What a killed reader left holds for an hour.
"""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from deltahub.cache.cache import DELTAS, MANIFEST, copy_delta
from deltahub.checkpoint import CONFIG
from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files import read_file, scratch
from deltahub.manifest import Manifest
from deltahub.rights import make_folder

READING: Final = "reading"
_HOLDS: Final = 3600.0  # seconds
_DIGITS: Final = re.compile("[0-9a-f]{2}/[0-9a-f]{62}")
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


def published_as(folder: Path) -> Manifest | None:
    """The manifest of a delta in a cache, by the digest in its path, which nobody can change; None for any other folder.

    Raises:
        IntegrityError: the manifest there is another one.
    """
    if not _in_cache(folder):
        return None
    return Manifest.from_bytes(read_file(folder / MANIFEST), f"sha256:{folder.parent.name}{folder.name}")


@contextlib.contextmanager
def checked(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Give a delta in a form in which what is read is what was published, whatever others write in its folder meanwhile.

    Yields:
        The folder to read and, if it is in a cache, the sha256 that its config must have: the config vouches for the other files.
            A delta in the format of others, which has no such config, is copied to a temporary folder, checked on the way.
    """
    manifest = published_as(folder)
    files = {entry.path: entry.sha256 for entry in manifest.files} if manifest else {}
    if manifest is None or CONFIG in files:
        yield folder, files.get(CONFIG)
        return
    with scratch() as place:
        copy_delta(manifest, folder, place / "delta")
        yield place / "delta", None


def being_read(root: Path, digits: str) -> bool:
    """Whether a reader said that it wants a delta of a cache to stay.

    Args:
        root: the cache.
        digits: of the delta's digest.
    """
    marks = (root / READING).glob(f"{digits}.*")
    return any(_holds(mark) for mark in marks)


def forget_killed(root: Path) -> None:
    """Remove what killed readers of a cache left."""
    for mark in (root / READING).glob("*.*"):
        if not _holds(mark):
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _wanted(folder: Path) -> Iterator[None]:
    root = folder.parents[2]
    mark = root / READING / f"{folder.parent.name}{folder.name}.{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # whoever may not write here is left with getting it again
        make_folder(root, mark.parent)
        mark.touch()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def _in_cache(folder: Path) -> bool:
    return _DIGITS.fullmatch(f"{folder.parent.name}/{folder.name}") is not None and folder.parents[1].name == DELTAS


def _state(folder: Path) -> tuple[int, int] | None:
    """What changes when a folder is removed, or moved away and back; None if it is not there."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _holds(mark: Path) -> bool:
    """Whether a mark is an hour old at most; one that is of the future by more was made by a clock that was wrong."""
    try:
        return abs(time.time() - mark.stat().st_mtime) < _HOLDS
    except OSError:  # its reader is done
        return False
