"""Safe listings of a local store during concurrent writes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deltahub.errors import NotFoundError, StorageError
from deltahub.files.atomic import storage_errors

_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # ELOOP: a cyclic link


@contextlib.contextmanager
def reading(root: Path, key: str) -> Iterator[None]:
    """Turn errors of the disk while a key is read into one sentence.

    Raises:
        NotFoundError: the key does not exist.
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
    """Iterate over the files below a folder, in order, each with its inode, size and modification time as its stamp.

    Raises:
        StorageError: the folder cannot be read, or `root` is a file.
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
    """Return the names of files and folders directly in a folder, the latter with a "/" at the end; empty if it does not exist."""
    try:
        with reading(root, folder), os.scandir(root / folder) as entries:
            return [f"{entry.name}/" if _is_folder(entry) else entry.name for entry in entries]
    except NotFoundError:
        _refuse_file(root)
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _refuse_file(root: Path) -> None:
    """Raise if the folder or one of its parents is a file, as that is not an empty store."""
    with storage_errors("Reading the registry", root, "read"):
        there = next(path for path in (root, *root.absolute().parents) if path.exists())
        folder = there.is_dir()
    if not folder:
        msg = f"{there} is a file; expected the folder of a registry, {root}. Move it away, or set DELTAHUB_HOME."
        raise StorageError(msg)
