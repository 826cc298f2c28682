"""A store in a local or shared folder.

Every file is written to a staging folder, synced, and renamed to its place, so that a reader, who takes no lock, sees the old
bytes or the new ones. Leftovers of a crash stay in `staging/` and are never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from deltahub.errors import ConflictError, IntegrityError, NotFoundError, Outcome, outcome
from deltahub.files.atomic import (
    CHUNK,
    copy_hashed,
    open_file,
    read_file,
    sha256_file,
    staging,
    storage_errors,
    sync_folders,
)
from deltahub.files.durable import SyncBatch
from deltahub.files.permissions import inherit_permissions, make_folder, make_root
from deltahub.files.reserve import release_piece, reserve_space
from deltahub.stores.base import Progress, Source, Swap, object_key, require_digest, require_size
from deltahub.stores.local_files import children, reading, replace_claimed, replace_staged, walk

STAGING: Final = "staging"
CLAIMS: Final = "claims"


class LocalStore:
    """A store in a folder, which is created at the first write.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.root)

    @property
    def at_once(self) -> int:
        """Always 1: concurrent requests do not make a disk faster."""
        return 1

    def read(self, key: str) -> bytes:
        """Return the bytes under a key."""
        with reading(self.root, key):
            return read_file(self.root / key)

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Return the bytes under a key and their sha256, which is the etag."""
        try:
            data = self.read(key)
        except NotFoundError:
            return None
        return data, _etag(data)

    def size(self, key: str) -> int:
        """Return the number of bytes under a key."""
        with reading(self.root, key):
            return (self.root / key).stat().st_size

    def chunks(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Iterate over the bytes under a key in chunks."""
        with reading(self.root, key):
            reader = open_file(self.root / key)
        with reader:
            reader.seek(start)
            while True:
                with reading(self.root, key):
                    chunk = reader.read(CHUNK if end is None else min(CHUNK, end - reader.tell()))
                if not chunk:
                    return
                yield chunk

    def fetch(self, key: str, into: Path, progress: Progress | None = None, size: int | None = None) -> str:
        """Copy the bytes under a key to a new file."""
        require_size(self, key, size)
        digest, chunks = hashlib.sha256(), self.chunks(key, end=size)
        first = next(chunks, b"")  # a missing key creates no file
        with into.open("xb") as writer:
            for chunk in itertools.chain([first], chunks):
                digest.update(chunk)
                writer.write(chunk)
                if progress:
                    progress(len(chunk))
        return digest.hexdigest()

    def create(self, sources: Mapping[str, Source], progress: Progress | None = None) -> None:
        """Store objects: stage and hash all, sync all, then rename."""
        self._make_root()
        with (
            storage_errors("Storing a delta", self.root),
            self._stage() as stage,
            SyncBatch(stage, len(sources)) as syncing,
        ):
            reserve_space(self.root)
            staged: dict[Path, Path] = {}
            folders: list[Path] = []
            for sha256, source in sources.items():
                target = self.root / object_key(sha256)
                if _is_intact(target, sha256, source):
                    folders.append(target.parent)
                    if progress:
                        progress(len(source) if isinstance(source, bytes) else source.stat().st_size)
                else:
                    _stage(source, stage / sha256, sha256, progress)
                    staged[stage / sha256] = target
            syncing.files(staged)
            folders = [above for folder in set(folders) for above in self._chain(folder)]
            for folder in {target.parent for target in staged.values()}:
                folders += self._make_folder(folder)
            inherit_permissions(self.root, staged, read_only=True)
            for temporary, target in staged.items():
                os.replace(temporary, target)
            syncing.folders(folders)

    def swap(self, key: str, data: bytes, expected: str | None) -> str:
        """Replace a document if it has not changed since it was read."""
        target, check = self.root / key, partial(self._require, key, expected)
        with storage_errors("Updating a delta's record", self.root):
            check()  # before any folder is created
            self._make_root()
            folders = self._make_folder(target.parent)
            make_folder(self.root, (self.root / CLAIMS / key).parent)
            replace_claimed(target, data, self.root / CLAIMS / key, check, partial(inherit_permissions, self.root))
            sync_folders(folders)
        return _etag(data)

    def swap_all(self, swaps: Sequence[Swap]) -> list[Outcome[str]]:
        """Replace many documents: write and sync all, then compare and rename one by one, then sync the renames."""
        results: list[Outcome[str]] = []
        self._make_root()
        with (
            storage_errors("Updating the records of many deltas", self.root),
            self._stage() as stage,
            SyncBatch(stage, len(swaps)) as syncing,
        ):
            staged = [stage / f"{number}" / uuid.uuid4().hex for number in range(len(swaps))]
            for temporary, swap in zip(staged, swaps, strict=True):
                temporary.parent.mkdir()
                temporary.write_bytes(swap.data)
            syncing.files(staged)
            inherit_permissions(self.root, [*staged, *(temporary.parent for temporary in staged)])
            parents = {(self.root / swap.key).parent for swap in swaps}
            folders = [above for parent in parents for above in self._make_folder(parent)]
            for temporary, swap in zip(staged, swaps, strict=True):
                results.append(outcome(partial(self._swap_staged, temporary, swap)))
            syncing.folders(folders)
        return results

    def _swap_staged(self, temporary: Path, swap: Swap) -> str:
        """Compare and rename one document; return its new etag."""
        target, claim = self.root / swap.key, self.root / CLAIMS / swap.key
        check = partial(self._require, swap.key, swap.expected)
        with storage_errors("Updating a delta's record", self.root):
            check()
            make_folder(self.root, claim.parent)
            if not replace_staged(target, temporary.parent, temporary.name, claim, check):
                replace_claimed(target, swap.data, claim, check, partial(inherit_permissions, self.root))
        return _etag(swap.data)

    def _require(self, key: str, expected: str | None) -> None:
        current = self.read_tagged(key)
        etag = current[1] if current else None
        if etag != expected:
            raise ConflictError(key, expected, etag)

    def children(self, folder: str) -> list[str]:
        """Return the names of keys and folders directly in a folder."""
        return children(self.root, folder)

    def folder_stamp(self, folder: str) -> str | None:
        """Return the folder's inode and change times, which every rename into it changes."""
        try:
            stat = (self.root / folder).stat()
        except OSError:
            return None
        return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Iterate over the keys that start with `prefix`; a file's stamp is its inode, size and modification time."""
        stamps = walk(self.root, prefix.rpartition("/")[0])
        yield from ((key, stamp) for key, stamp in stamps if key.startswith(prefix))

    def settle(self, keys: Iterable[str]) -> None:
        """Sync the folders of keys: the bytes were synced before they were renamed there."""
        with storage_errors("Storing a delta", self.root):
            sync_folders(folder for key in keys for folder in self._chain((self.root / key).parent))

    def delete(self, key: str) -> None:
        """Remove a key."""
        with storage_errors("Removing from the registry", self.root):
            (self.root / key).unlink(missing_ok=True)

    def spend_reserve(self) -> bool:
        """Release a piece of the reserved space."""
        return release_piece(self.root)

    def _make_root(self) -> None:
        """Create the folder of the store durably."""
        with storage_errors("Making a registry", self.root):
            fresh = [path for path in (self.root, *self.root.parents) if not path.exists()]
            make_root(self.root)
            sync_folders(path.parent for path in fresh)

    @contextlib.contextmanager
    def _stage(self) -> Iterator[Path]:
        make_folder(self.root, self.root / STAGING)
        with staging(self.root / STAGING) as stage:
            yield stage

    def _make_folder(self, folder: Path) -> list[Path]:
        """Create a folder, and return the folders to sync after a rename into it."""
        make_folder(self.root, folder)
        return self._chain(folder)

    def _chain(self, folder: Path) -> list[Path]:
        """Return a folder and its parents up to the root: their creators may have been killed before syncing them."""
        above = [folder, *folder.parents]
        return above[: above.index(self.root) + 1]


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_intact(target: Path, sha256: str, source: Source) -> bool:
    """Check whether an object is stored intact; if so, its modification time is updated, so that it counts as new."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    try:
        if sha256_file(target, size)[0] != sha256:
            return False
    except (FileNotFoundError, PermissionError, IntegrityError):
        return False
    with contextlib.suppress(PermissionError):  # another user's file may be readable but not writable
        os.utime(target)
    return True


def _stage(source: Source, temporary: Path, sha256: str, progress: Progress | None) -> None:
    if isinstance(source, bytes):
        temporary.write_bytes(source)
        digest = _etag(source)
        if progress:
            progress(len(source))
    else:
        digest, _ = copy_hashed(source, temporary, progress=progress)
    require_digest(source, sha256, digest)
