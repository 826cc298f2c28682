"""A store in a local or shared folder.

Everything is written beside its place, synced, and renamed into it, so that a reader, who takes no lock, sees the old bytes
or the new ones. What a crash leaves behind lies in `staging/` and is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from deltahub.errors import ConflictError, NotFoundError, StorageError
from deltahub.files import (
    CHUNK,
    copy_hashed,
    locked,
    sha256_file,
    staging,
    storage_errors,
    sync_file,
    sync_folders,
    write_synced,
)
from deltahub.stores.base import Progress, Source, object_key, require_digest

STAGING: Final = "staging"
LOCKS: Final = "locks"
_READ_ONLY: Final = 0o444


class LocalStore:
    """A store in a folder, which is made at the first write.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.root)

    def read(self, key: str) -> bytes:
        """The bytes under a key."""
        with self._reading(key):
            return (self.root / key).read_bytes()

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """The bytes under a key and their sha256, which is the etag."""
        try:
            data = self.read(key)
        except NotFoundError:
            return None
        return data, _etag(data)

    def fetch(self, key: str, into: Path, progress: Progress | None = None) -> str:
        """Copy the bytes under a key to a new file."""
        with self._reading(key):
            reader = (self.root / key).open("rb")
        digest = hashlib.sha256()
        with reader, into.open("xb") as writer:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
                writer.write(chunk)
                if progress:
                    progress(len(chunk))
        return digest.hexdigest()

    def create(self, sources: Mapping[str, Source], progress: Progress | None = None) -> None:
        """Store objects: stage and hash all, sync all, then rename."""
        with storage_errors("Storing a delta", self.root), staging(self.root / STAGING) as stage:
            staged: dict[Path, Path] = {}
            for sha256, source in sources.items():
                target = self.root / object_key(sha256)
                if not _intact(target, sha256):
                    _stage(source, stage / sha256, sha256)
                    staged[stage / sha256] = target
                if progress:
                    progress(len(source) if isinstance(source, bytes) else source.stat().st_size)
            for temporary in staged:
                sync_file(temporary)
            folders: list[Path] = []
            for temporary, target in staged.items():
                folders += self._make_folder(target.parent)
                temporary.chmod(_READ_ONLY)
                os.replace(temporary, target)
            sync_folders(folders)

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace a document under a lock, if it is still the one that was read."""
        target = self.root / key
        with storage_errors("Updating a delta's record", self.root), locked(self.root / LOCKS / key):
            current = self.read_tagged(key)
            found = current[1] if current else None
            if found != expected:
                raise ConflictError(key, expected, found)
            with staging(self.root / STAGING) as stage:
                write_synced(stage / "document", data)
                folders = self._make_folder(target.parent)
                os.replace(stage / "document", target)
                sync_folders(folders)
        return _etag(data)

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Every key that starts with `prefix`; a file's stamp is its inode, size and time of change."""
        found = self._walk(prefix.rpartition("/")[0])
        yield from ((key, stamp) for key, stamp in found if key.startswith(prefix))

    def _walk(self, key: str) -> Iterator[tuple[str, str]]:
        try:
            with self._reading(key):
                entries = sorted(os.scandir(self.root / key), key=lambda entry: entry.name)
        except NotFoundError:
            self._refuse_file()
            return
        for entry in entries:
            path = f"{key}/{entry.name}"
            if entry.is_dir():
                yield from self._walk(path)
                continue
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                stat = entry.stat()
                yield path, f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"

    def _refuse_file(self) -> None:
        """A file where the folder or one above it should be is no empty store."""
        there = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if not there.is_dir():
            msg = f"{there} is a file; expected the folder of a registry, {self.root}. Move it away, or set DELTAHUB_HOME."
            raise StorageError(msg)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            with storage_errors("Reading the registry", self.root, "read"):
                yield
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise NotFoundError(key, (self.url,)) from error
            raise

    def delete(self, key: str) -> None:
        """Remove a key."""
        with storage_errors("Removing from the registry", self.root):
            (self.root / key).unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> list[Path]:
        """Make a folder, and return what must be synced for a file that is renamed into it to outlast a power loss."""
        missing = [folder, *folder.parents]
        fresh = [path for path in missing[: missing.index(self.root)] if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        return [folder, *(path.parent for path in fresh)]


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _intact(target: Path, sha256: str) -> bool:
    """Whether an object is there and whole; if so it is freshened, so that it counts as new."""
    try:
        intact = sha256_file(target)[0] == sha256
        if intact:
            os.utime(target)
    except (FileNotFoundError, PermissionError):  # a colleague's may be read but not freshened
        return False
    return intact


def _stage(source: Source, temporary: Path, sha256: str) -> None:
    if isinstance(source, bytes):
        temporary.write_bytes(source)
        found = _etag(source)
    else:
        found, _ = copy_hashed(source, temporary)
    require_digest(source, sha256, found)
