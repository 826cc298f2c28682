"""Reads of a cached delta while other processes may remove it.

    reading/<64>.<32>      a reader's mark on the delta that it needs; the part after the dot is unique to the reader

A reader sets no mark at first, at no cost: a delta is hardly ever removed right after it was fetched. A reader that finds a delta
missing sets a mark, fetches it again, and then it stays until the reader is done. The mark of a killed reader holds for an hour.
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
from deltahub.checkpoint.checkpoint import CONFIG
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import CheckpointError, IntegrityError
from deltahub.files.atomic import read_file, scratch
from deltahub.files.permissions import make_folder

READING: Final = "reading"
_HOLDS: Final = 3600.0  # seconds
_DIGITS: Final = re.compile("[0-9a-f]{2}/[0-9a-f]{62}")
_TRIES: Final = 5  # a process about to remove it when the mark was set moves it away and back, once

T = TypeVar("T")


def read_cached(get: Callable[[], Path], read: Callable[[Path], T]) -> T:
    """Read a delta; if it is in a cache and other processes remove it meanwhile, fetch it again.

    Args:
        get: fetches the delta and returns its folder.
        read: reads from the folder, and fails if a file is missing.
    """
    with contextlib.ExitStack() as wanted:
        for number in range(_TRIES):
            folder = get()
            before = _state(folder)
            try:
                return read(folder)
            except (CheckpointError, IntegrityError, OSError):  # on NFS a removed file can be a stale one
                still_there = before is not None and _state(folder) == before
                if still_there or not _in_cache(folder) or number == _TRIES - 1:
                    raise
            wanted.enter_context(_wanted(folder))
    raise AssertionError  # the last try returns or raises


def published_as(folder: Path) -> Manifest | None:
    """Return the manifest of a delta in a cache, verified by the digest in its path; None for any other folder.

    Raises:
        IntegrityError: the manifest there is another one.
    """
    if not _in_cache(folder):
        return None
    return Manifest.from_bytes(read_file(folder / MANIFEST), f"sha256:{folder.parent.name}{folder.name}")


@contextlib.contextmanager
def checked(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Provide a delta so that only its published bytes are read, whatever others write in its folder meanwhile.

    Yields:
        The folder to read and, if it is in a cache, the required sha256 of its config, which vouches for the other files.
            A delta in another format, without such a config, is copied to a temporary folder and verified on the way.
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
    """Check whether a reader has marked a delta in a cache.

    Args:
        root: the cache.
        digits: the hex digits of the delta's digest.
    """
    marks = (root / READING).glob(f"{digits}.*")
    return any(_holds(mark) for mark in marks)


def forget_killed(root: Path) -> None:
    """Remove the marks of killed readers."""
    for mark in (root / READING).glob("*.*"):
        if not _holds(mark):
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def _wanted(folder: Path) -> Iterator[None]:
    root = folder.parents[2]
    mark = root / READING / f"{folder.parent.name}{folder.name}.{uuid.uuid4().hex}"
    with contextlib.suppress(OSError):  # without write permission, the delta is only fetched again
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
    """Return a value that changes when a folder is removed, or moved away and back; None if it does not exist."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _holds(mark: Path) -> bool:
    """Check whether a mark is at most an hour old; one more than an hour in the future comes from a wrong clock and does not count."""
    try:
        return abs(time.time() - mark.stat().st_mtime) < _HOLDS
    except OSError:  # its reader is done and removed it
        return False
