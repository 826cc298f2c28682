"""Files of a local store during concurrent writes: safe listings, and compare-and-swap.

The swap works on every file system with rename. It needs no lock, so it works where locks have no effect.

To replace a document, a process first *claims* it: a folder with the new bytes, synced, is renamed to the one path for claims on
that document, which fails while another claim exists. Then the document is checked once more, and the file is renamed out of the
claim over the document. Only the holder of the claim can have changed the document in between.

A claim may be taken away at any time, since its file has a unique name: the process that lost it finds nothing to rename. So
the claim of a killed process blocks others only for a moment, and a process that was only slow overwrites nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from deltahub.errors import NotFoundError, StorageError
from deltahub.files.atomic import STAGE, staging, storage_errors, write_synced

SILENT: Final = 1.0  # seconds before a claim is taken away; its holder needs less than a thousandth
_PAUSE: Final = 0.002  # seconds between two checks of a claim
_TAKEN: Final = frozenset({errno.EEXIST, errno.ENOTEMPTY})


def replace_claimed(
    target: Path,
    data: bytes,
    claim: Path,
    check: Callable[[], None],
    prepare: Callable[[list[Path]], None] = lambda _: None,
) -> None:
    """Replace a document if it is unchanged; of several concurrent calls only one succeeds.

    Args:
        target: the document; its folder exists. The caller syncs that folder.
        claim: the path for claims on it, on the same file system.
        check: raises if the document has changed.
        prepare: called with the new file and the folder to become the claim, before others see them.
    """
    while True:
        check()
        with staging(claim.parent) as stage:
            name = uuid.uuid4().hex
            write_synced(stage / name, data)
            prepare([stage / name, stage])
            if replace_staged(target, stage, name, claim, check):
                return


def replace_staged(target: Path, stage: Path, name: str, claim: Path, check: Callable[[], None]) -> bool:
    """Make a claim of a folder with a written and synced file, and rename the file over the document.

    Args:
        target: see `replace_claimed`; likewise `claim` and `check`.
        stage: the folder, on the same file system; it is gone afterwards.
        name: the file's name in it, unique among all claims.

    Returns:
        Whether the document was replaced; False if another process took the claim away.
    """
    _take(stage, claim, check)
    try:
        check()
        os.replace(claim / name, target)
    except FileNotFoundError:  # another process took the claim away after a long wait
        return False
    finally:
        with contextlib.suppress(OSError):  # if this fails, the next claim waits for a moment
            (claim / name).unlink(missing_ok=True)
            claim.rmdir()
    return True


def _take(stage: Path, claim: Path, check: Callable[[], None]) -> None:
    """Rename `stage` to `claim`; wait while another claim exists, and take it away after `SILENT` seconds."""
    holder: list[str] = []
    since = 0.0
    while not _renamed(stage, claim):
        check()
        with contextlib.suppress(FileNotFoundError):
            names = [path.name for path in claim.iterdir()]
            if names != holder:
                holder, since = names, time.monotonic()
            elif time.monotonic() > since + SILENT:
                broken = claim.with_name(f"{STAGE}{uuid.uuid4().hex}")
                claim.rename(broken)
                shutil.rmtree(broken, ignore_errors=True)
                continue
        time.sleep(_PAUSE)


def _renamed(stage: Path, claim: Path) -> bool:
    with contextlib.suppress(OSError):  # an empty claim is finished
        claim.rmdir()
    try:
        stage.rename(claim)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True


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
        existing_path = next(path for path in (root, *root.absolute().parents) if path.exists())
        folder = existing_path.is_dir()
    if not folder:
        msg = (
            f"{existing_path} is a file; expected the folder of a registry, {root}. Move it away, or set DELTAHUB_HOME."
        )
        raise StorageError(msg)
