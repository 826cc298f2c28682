"""What there is below a folder that is a store, while others write to it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deltahub.errors import NotFoundError, StorageError
from deltahub.files import storage_errors

_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # the last is a link that leads to itself


@contextlib.contextmanager
def reading(root: Path, key: str) -> Iterator[None]:
    """Turn what the disk says while a key is read into one sentence.

    Raises:
        NotFoundError: there is nothing under the key.
        StorageError: it cannot be read.
    """
    try:
        with storage_errors("Reading the registry", root, "read"):
            yield
    except StorageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _MISSING:
            raise NotFoundError(key, (str(root),)) from error
        raise


def walk(root: Path, key: str) -> Iterator[tuple[str, str]]:
    """Every file below a folder, in order, with its inode, size and time of change as its stamp.

    Raises:
        StorageError: the folder cannot be read, or a file stands where `root` should be.
    """
    try:
        with reading(root, key):
            entries = sorted(os.scandir(root / key), key=lambda entry: entry.name)
    except NotFoundError:
        _refuse_file(root)
        return
    for entry in entries:
        path = f"{key}/{entry.name}"
        if _is_folder(entry):
            yield from walk(root, path)
            continue
        try:
            with reading(root, path):
                stat = entry.stat()
        except NotFoundError:  # deleted since it was listed
            continue
        yield path, f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"


def children(root: Path, folder: str) -> list[str]:
    """The names of files and folders directly in a folder, the latter with a "/" at their ends; empty if it is not there."""
    try:
        with reading(root, folder), os.scandir(root / folder) as entries:
            return [f"{entry.name}/" if _is_folder(entry) else entry.name for entry in entries]
    except NotFoundError:
        _refuse_file(root)
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _refuse_file(root: Path) -> None:
    """A file where the folder or one above it should be is no empty store."""
    with storage_errors("Reading the registry", root, "read"):
        there = next(path for path in (root, *root.absolute().parents) if path.exists())
        folder = there.is_dir()
    if not folder:
        msg = f"{there} is a file; expected the folder of a registry, {root}. Move it away, or set DELTAHUB_HOME."
        raise StorageError(msg)
