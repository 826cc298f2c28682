"""The cache: every pulled delta, as a folder under the digest of its manifest.

    deltas/<2>/<62>/               the files of a version, its manifest, and the reference it was pulled by
    pins/<64>.json                 deltas kept however old they are (`deltahub.cache.maintenance`)
    reading/                       deltas kept while they are read (below)
    partial/                       the received parts of interrupted downloads (`deltahub.sources.partial`)
    reserve/                       space to free a full disk with (`deltahub.files.reserve`)

A delta is verified before each use, so the cache needs no syncing: files damaged by a crash are fetched again. Nothing relies on
a lock: a delta is added and removed by one rename, and a reader that misses one fetches it again.

A delta is read while other processes may remove it:

    reading/<64>.<32>      a reader's mark on the delta that it needs; the part after the dot is unique to the reader

A reader sets no mark at first, at no cost: a delta is hardly ever removed right after it was fetched. A reader that finds a delta
missing sets a mark, fetches it again, and then it stays until the reader is done. The mark of a killed reader holds for an hour.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from deltahub.checkpoint.checkpoint import CONFIG
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import CheckpointError, DeltaHubError, IntegrityError, NotFoundError
from deltahub.files.atomic import copy_hashed, move_all, read_file, scratch, sha256_file, staging, storage_errors
from deltahub.files.permissions import inherit_permissions, make_folder, make_root
from deltahub.files.reserve import reserve_space
from deltahub.reference import Digest
from deltahub.stores.retry import CACHE_ATTEMPTS, READ_ATTEMPTS
from deltahub.stores.threads import run_concurrently

MANIFEST: Final = ".deltahub-manifest.json"  # beside the files of a delta, none of which may have this name
ORIGIN: Final = ".deltahub-origin.json"  # the reference it was pulled by, for people
DELTAS: Final = "deltas"
STAGING: Final = "staging"
_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})

Fetch = Callable[[FileEntry, Path], None]


def pulled_reference(folder: Path) -> str | None:
    """Return the reference that a folder in a cache was last pulled by; None for any other folder."""
    try:
        origin = json.loads(read_file(folder / ORIGIN))["origin"] if (folder / MANIFEST).exists() else None
    except (DeltaHubError, OSError, ValueError, LookupError, TypeError):
        return None
    return origin if isinstance(origin, str) else None


def digest_in_path(folder: Path) -> Digest:
    """Return the digest of the delta in a folder of a cache, from its path.

    Raises:
        ReferenceSyntaxError: it is not a folder for a delta.
    """
    return Digest.of_hex(f"{folder.parent.name}{folder.name}")


class Cache:
    """The deltas on this machine.

    Args:
        root: the cache folder; created when needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, digest: Digest) -> Path:
        """Return the folder for a delta, whether or not it exists."""
        digits = digest.hex
        return self.root / DELTAS / digits[:2] / digits[2:]

    def get(
        self, digest: Digest, manifest: Manifest, fetch: Fetch, origin: str, *, fresh: bool = False, at_once: int = 1
    ) -> Path:
        """Return the verified folder of a delta; fetch it if it is missing or damaged.

        Args:
            fetch: copies one file to a new path and verifies it.
            origin: the reference it is pulled by.
            fresh: fetch it even if it is cached.
            at_once: how many files are fetched at the same time; with more than one, `fetch` is called in several threads.

        Raises:
            CheckpointError: a file has a name reserved for the cache.
            IntegrityError: the source itself is damaged.
            StorageError: the cache is full or not writable.
        """
        folder = self.folder(digest)
        if fresh or self.damage(digest) is not None:
            self._fill(folder, manifest, fetch, origin, at_once)
        with contextlib.suppress(OSError):  # a read-only cache works too
            os.utime(folder)
        return folder

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Create a staging folder, to prepare content before it is renamed to its place."""
        make_root(self.root)
        make_folder(self.root, self.root / STAGING)
        with staging(self.root / STAGING) as stage:
            yield stage

    def place_file(self, file: Path, target: Path) -> None:
        """Rename a prepared file to its place, with the permissions of this cache."""
        inherit_permissions(self.root, [file])
        make_folder(self.root, target.parent)
        os.replace(file, target)

    def _fill(self, folder: Path, manifest: Manifest, fetch: Fetch, origin: str, at_once: int) -> None:
        if taken := {MANIFEST, ORIGIN}.intersection(entry.path for entry in manifest.files):
            msg = f"{origin} has a file called {taken.pop()}, which is a name of the cache's own. Push it without that file."
            raise CheckpointError(msg)
        with storage_errors("Caching a delta", self.root), self.stage() as stage:
            delta = stage / "delta"
            delta.mkdir()
            for entry in manifest.files:
                (delta / entry.path).parent.mkdir(parents=True, exist_ok=True)
            if at_once > 1:
                run_concurrently(lambda entry, _: fetch(entry, delta / entry.path), manifest.files, at_once)
            else:
                for entry in manifest.files:
                    fetch(entry, delta / entry.path)
            (delta / MANIFEST).write_bytes(manifest.to_bytes())
            (delta / ORIGIN).write_text(json.dumps({"origin": origin}), "utf-8")
            inherit_permissions(self.root, [delta, *delta.rglob("*")])
            reserve_space(self.root)
            self._place(delta, folder, stage)

    def _place(self, delta: Path, folder: Path, stage: Path) -> None:
        """Move a complete delta to its place; an existing one stays if it is intact and is replaced if it is damaged."""
        digest = digest_in_path(folder)
        for number in range(CACHE_ATTEMPTS):
            make_folder(self.root, folder.parent)
            try:
                os.replace(delta, folder)
            except OSError as error:
                parent_missing = error.errno == errno.ENOENT and delta.exists()  # another process removed the parent
                if (error.errno not in _TAKEN and not parent_missing) or number == CACHE_ATTEMPTS - 1:
                    raise
            else:
                return
            if self.damage(digest) is None:  # another process added the same bytes first, and readers may use them
                return
            with contextlib.suppress(FileNotFoundError):
                os.replace(folder, stage / f"old-{number}")

    def manifest(self, digest: Digest) -> Manifest | None:
        """Return the manifest of an intact delta in the cache; None if it is missing or damaged."""
        if self.damage(digest) is not None:
            return None
        try:
            return self._manifest(self.folder(digest), digest)
        except (DeltaHubError, OSError):  # removed meanwhile
            return None

    def _manifest(self, folder: Path, digest: Digest) -> Manifest:
        return Manifest.from_bytes(read_file(folder / MANIFEST), digest)

    def damage(self, digest: Digest) -> str | None:
        """Return a description of the damage to a delta in the cache; None if it is intact."""
        folder = self.folder(digest)
        try:
            manifest = self._manifest(folder, digest)
            for entry in manifest.files:
                actual, _ = sha256_file(folder / entry.path, entry.size)
                if actual != entry.sha256:
                    raise IntegrityError(entry.path, Digest.of_hex(entry.sha256), Digest.of_hex(actual))
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (DeltaHubError, OSError) as error:
            return str(error)
        return None

    def supply(self, sha256: str, into: Path) -> str:
        """Copy a file of any delta in the cache to a new path.

        Args:
            sha256: of the file, or of a delta's manifest, 64 hex digits.

        Returns:
            The sha256 of the copy.

        Raises:
            NotFoundError: no delta in the cache has it.
        """
        for folder in sorted((self.root / DELTAS).glob("??/*")):
            with contextlib.suppress(DeltaHubError, OSError):
                digest = digest_in_path(folder)
                manifest = self._manifest(folder, digest)
                paths = {digest.hex: MANIFEST} | {entry.sha256: entry.path for entry in manifest.files}
                if sha256 in paths and sha256_file(folder / paths[sha256])[0] == sha256:
                    return copy_hashed(folder / paths[sha256], into)[0]
        raise NotFoundError(Digest.of_hex(sha256), (str(self.root),))


def copy_delta(manifest: Manifest, folder: Path, to: Path) -> None:
    """Copy a delta out of the cache, the config last, as it vouches for the rest.

    Args:
        to: a folder that is new or holds a delta.

    Raises:
        CheckpointError: files that do not belong to a delta would be overwritten.
        IntegrityError: a file in the cache is missing or damaged.
    """
    from deltahub.checkpoint.from_files import holds_delta

    with storage_errors("Copying the delta", to):
        taken = [entry.path for entry in manifest.files if (to / entry.path).exists()]
        if taken and not holds_delta(to):
            msg = f"{to} holds no delta, and its {', '.join(taken)} would be overwritten. Choose a new folder."
            raise CheckpointError(msg)
        to.mkdir(parents=True, exist_ok=True)
        with staging(to) as stage:
            for entry in manifest.files:
                (stage / entry.path).parent.mkdir(parents=True, exist_ok=True)
                _copy(folder / entry.path, stage / entry.path, entry)
            move_all(stage, to, sorted((entry.path for entry in manifest.files), key=CONFIG.__eq__))


def _copy(source: Path, target: Path, entry: FileEntry) -> None:
    try:
        actual, _ = copy_hashed(source, target, entry.size)
    except FileNotFoundError:  # pruned before or during the copy
        actual = "nothing"
    except IntegrityError as error:
        actual = error.found
    if actual != entry.sha256:
        raise IntegrityError(f"{entry.path} in the cache", entry.sha256, actual, "Repeat the pull.")


READING: Final = "reading"
_HOLDS: Final = 3600.0  # seconds
_DIGITS: Final = re.compile("[0-9a-f]{2}/[0-9a-f]{62}")

T = TypeVar("T")


def read_cached(get: Callable[[], Path], read: Callable[[Path], T]) -> T:
    """Read a delta; if it is in a cache and other processes remove it meanwhile, fetch it again.

    Args:
        get: fetches the delta and returns its folder.
        read: reads from the folder, and fails if a file is missing.
    """
    with contextlib.ExitStack() as marks:
        for number in range(READ_ATTEMPTS):
            folder = get()
            state = _state(folder)
            try:
                result = read(folder)
            except (CheckpointError, IntegrityError, OSError):  # on NFS a removed file can be a stale one
                still_there = state is not None and _state(folder) == state
                if still_there or not _is_in_cache(folder) or number == READ_ATTEMPTS - 1:
                    raise
            else:
                if number == READ_ATTEMPTS - 1 or not _was_removed(folder, state):
                    return result
            marks.enter_context(_reading_mark(folder))
    raise AssertionError  # the last try returns or raises


def published_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a delta in a cache, verified by the digest in its path; None for any other folder.

    Raises:
        IntegrityError: the manifest there is another one.
    """
    if not _is_in_cache(folder):
        return None
    return Manifest.from_bytes(read_file(folder / MANIFEST), digest_in_path(folder))


@contextlib.contextmanager
def checked(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Provide a delta so that only its published bytes are read, whatever others write in its folder meanwhile.

    Yields:
        The folder to read and, if it is in a cache, the required sha256 of its config, which vouches for the other files.
            A delta in another format, without such a config, is copied to a temporary folder and verified on the way.
    """
    manifest = published_manifest(folder)
    files = {entry.path: entry.sha256 for entry in manifest.files} if manifest else {}
    if manifest is None or CONFIG in files:
        yield folder, files.get(CONFIG)
        return
    with scratch() as place:
        copy_delta(manifest, folder, place / "delta")
        yield place / "delta", None


def is_being_read(root: Path, digits: str) -> bool:
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
def _reading_mark(folder: Path) -> Iterator[None]:
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


def _is_in_cache(folder: Path) -> bool:
    return _DIGITS.fullmatch(f"{folder.parent.name}/{folder.name}") is not None and folder.parents[1].name == DELTAS


def _was_removed(folder: Path, state: tuple[int, int] | None) -> bool:
    """Check whether a delta in a cache was removed since, or fetched again: a read may have missed an optional file, such as the card."""
    now = _state(folder)
    return _is_in_cache(folder) and state is not None and (now is None or now[0] != state[0])


def _state(folder: Path) -> tuple[int, int] | None:
    """Return a value that changes when a folder is removed, or moved away and back; None if it does not exist."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_ino, status.st_ctime_ns


def _holds(mark: Path) -> bool:
    """Check whether a mark is at most an hour old; one more than an hour in the future comes from a wrong clock and does not count."""
    try:
        return abs(time.time() - mark.stat().st_mtime) < _HOLDS
    except OSError:  # its reader is done and removed it
        return False
