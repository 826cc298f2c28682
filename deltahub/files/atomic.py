"""Files on disk: hashing, atomic staged writes, syncing, locks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from deltahub.errors import CheckpointError, IntegrityError, MissingFileError, StorageError

CHUNK: Final = 1 << 20  # bytes read or written at a time
WHOLE: Final = 256 << 20  # maximum bytes of a file read as a whole
_STALE: Final = 86400.0  # seconds after which a stage cannot be in use any more
STAGE: Final = ".deltahub-"  # followed by 32 hex digits, so a user's own folders are never mistaken for a stage
REPLACED: Final = "replaced"  # in a stage: the replaced files, kept for a rollback
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_FOLDER_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})  # CIFS and mounts of buckets
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


_KINDS: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: Path, size: int | None = None, most: int | None = None) -> io.BufferedReader:
    """Open a file for reading; refuse a pipe, which may block, and a device, which may never end.

    Args:
        size: the required bytes; a file of another size is refused before it is read.
        most: the maximum bytes.

    Raises:
        IntegrityError: the path is not a regular file, or the file has another size.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_file(path, os.fstat(descriptor), size, most)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_file(path: Path, status: os.stat_result, size: int | None, most: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(
            str(path), "a file", _KINDS.get(stat.S_IFMT(status.st_mode), "something else"), "Remove it."
        )
    if size is not None and status.st_size != size:
        raise IntegrityError(str(path), f"{size} bytes", f"{status.st_size} bytes")
    if most is not None and status.st_size > most:
        raise IntegrityError(str(path), f"{most} bytes at most", f"{status.st_size} bytes", "Remove it.")


def read_file(path: Path, most: int = WHOLE) -> bytes:
    """Read a whole file, opened with `open_file`."""
    with open_file(path, most=most) as file:
        return file.read()


def sha256_file(path: Path, size: int | None = None) -> tuple[str, int]:
    """Hash a file.

    Args:
        size: the required bytes, as in `open_file`.

    Returns:
        The sha256 as 64 hex digits, and the size in bytes.
    """
    with open_file(path, size) as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


def read_limited(path: Path, limit: int) -> bytes:
    """Read a whole regular file of at most `limit` bytes.

    Raises:
        CheckpointError: the file cannot be read, or is larger; nothing was read.
        IntegrityError: the path is not a regular file.
    """
    with regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            msg = f"{path} has {size} bytes, and a file of its kind has {limit} at most. Fetch or save it again."
            raise CheckpointError(msg)
        return file.read(limit)


@contextlib.contextmanager
def regular(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file of a checkpoint with `open_file`.

    Raises:
        CheckpointError: the file cannot be read.
        IntegrityError: the path is not a regular file.
    """
    try:
        file = open_file(path)
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror or error}). Fetch or save it again."
        raise CheckpointError(msg) from error
    with file:
        yield file


def read_range(path: Path, start: int, end: int) -> bytes:
    """Return the bytes of a file of a checkpoint from `start` to before `end`; fewer if the file is shorter.

    Raises:
        CheckpointError: the file cannot be read.
        IntegrityError: the path is not a regular file.
    """
    with regular(path) as file:
        file.seek(start)
        return file.read(end - start)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and sync it to disk."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_hashed(
    source: Path, target: Path, size: int | None = None, progress: Callable[[int], None] | None = None
) -> tuple[str, int]:
    """Copy a file into a new one, hashing the bytes on the way.

    Args:
        size: the required bytes, as in `open_file`.
        progress: called with the number of bytes of each copied chunk.

    Returns:
        The sha256 as 64 hex digits, and the size in bytes. Nothing is synced.
    """
    digest, copied = hashlib.sha256(), 0
    with open_file(source, size) as reader, target.open("xb") as writer:
        while chunk := reader.read(CHUNK):
            digest.update(chunk)
            writer.write(chunk)
            copied += len(chunk)
            if progress:
                progress(len(chunk))
    return digest.hexdigest(), copied


def sync_file(path: Path) -> None:
    """Flush a file's bytes to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folders(folders: Iterable[Path]) -> None:
    """Flush the entries of folders to disk, so that renames into them survive a power loss."""
    if os.name == "nt":  # Windows cannot open a folder; NTFS journals its entries
        return
    for folder in dict.fromkeys(folders):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Create an empty folder inside `parent`, and remove it afterwards with everything left in it.

    Leftovers of a killed process are removed after a day, except files that it was about to replace.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{STAGE}{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        _remove_leftovers(parent, folder.stat().st_mtime)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(parent: Path, now: float) -> None:
    """Remove leftovers of killed processes.

    Args:
        now: the time by the clock of the disk, which may differ from this machine's. A time in the future comes from a wrong clock.
    """
    for leftover in parent.glob(f"{STAGE}*"):
        with contextlib.suppress(OSError):
            is_stage = re.fullmatch(r"[0-9a-f]{32}", leftover.name.removeprefix(STAGE))
            if is_stage and abs(leftover.stat().st_mtime - now) > _STALE and not (leftover / REPLACED).exists():
                shutil.rmtree(leftover)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Create an empty folder in the system's temporary folder (set by TMPDIR), and remove it afterwards.

    Raises:
        StorageError: the disk is full or not writable.
    """
    place = Path(tempfile.gettempdir())
    with storage_errors("Using the temporary folder", place), tempfile.TemporaryDirectory(prefix="deltahub-") as folder:
        yield Path(folder)


def move_all(stage: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files from `stage` over those in `folder`, in order; if a move fails, roll all moves back.

    A crash half way leaves the replaced files in `stage`.
    """
    replaced = stage / REPLACED
    replaced.mkdir()
    existing_names = [name for name in names if (folder / name).exists()]
    for name in existing_names:
        (replaced / name).parent.mkdir(parents=True, exist_ok=True)
        _keep(folder / name, replaced / name)
    try:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / name, folder / name)
    except BaseException:
        for name in names:
            if name in existing_names:
                os.replace(replaced / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        raise


def _keep(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # not every file system supports hard links
        shutil.copy2(path, copy)


@contextlib.contextmanager
def locked(path: Path, timeout: float = 30.0) -> Iterator[None]:
    """Hold the lock file `path`, an advisory lock among DeltaHub processes.

    Args:
        timeout: seconds to wait for another holder.

    Raises:
        StorageError: the lock was not released in time.
    """
    import filelock  # late import: 30 ms, needed only by writers

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=timeout):
            yield
    except filelock.Timeout as error:
        msg = f"Another process has held the lock {path} for {timeout:.0f} seconds. Wait for it to finish and repeat."
        raise StorageError(msg) from error


def is_full(error: BaseException) -> bool:
    """Return whether an error means a full disk, including one wrapped by `storage_errors`."""
    cause = error.__cause__ or error
    return isinstance(cause, OSError) and cause.errno in _FULL


@contextlib.contextmanager
def storage_errors(doing: str, place: Path, right: str = "write") -> Iterator[None]:
    """Convert errors of a full, read-only or unreachable disk to a one-sentence StorageError.

    Args:
        doing: the operation, e.g. ``"publishing DeltaHub/sst2"``.
        place: the folder in use.
        right: the kind of access, in one word.

    Raises:
        MissingFileError: a file to read does not exist.
        StorageError: any other failure of the disk.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            remedy = "No space is left there. Free some and repeat; nothing was half written."
        elif right == "read" and isinstance(error, FileNotFoundError):
            msg = f"{doing} failed: there is no file {error.filename or place}. Check the path."
            raise MissingFileError(msg) from error
        elif error.errno in _FORBIDDEN:
            remedy = f"You may not {right} there. Ask its owner for the right, or choose another folder."
        else:
            remedy = "Check that path and its disk, and repeat."
        reason = f"{error.strerror or error}: {error.filename}" if error.filename else f"{error.strerror or error}"
        msg = f"{doing} failed in {place} ({reason}). {remedy}"
        raise StorageError(msg) from error
