"""The cache: every delta that was pulled, as a folder under the digest of its manifest.

    deltas/<2>/<62>/               the files of one version, and `manifest.json`

What is taken from it is checked first, so it needs no syncing: whatever a crash damaged is fetched again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deltahub.errors import CheckpointError, DeltaHubError, IntegrityError, NotFoundError
from deltahub.files import copy_hashed, move_all, sha256_file, staging, storage_errors
from deltahub.manifest import FileEntry, Manifest

MANIFEST: Final = "manifest.json"
ORIGIN: Final = "origin.json"  # where it was pulled from, for people

Fetch = Callable[[FileEntry, Path], None]


@dataclass(frozen=True)
class Cached:
    """One delta in the cache.

    Attributes:
        digest: of its manifest.
        folder: where its files are.
        origin: the reference it was last pulled by.
        size: bytes.
        used: when it was last used, seconds since 1970.
    """

    digest: str
    folder: Path
    origin: str
    size: int
    used: float


def pulled_as(folder: Path) -> str | None:
    """The reference that a folder in a cache was last pulled by; None for any other folder."""
    try:
        origin = json.loads((folder / ORIGIN).read_bytes())["origin"] if (folder / MANIFEST).exists() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return origin if isinstance(origin, str) else None


class Cache:
    """Deltas on this machine.

    Args:
        root: the cache folder; made when needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, digest: str) -> Path:
        """Where a delta is or would be."""
        digits = digest.removeprefix("sha256:")
        return self.root / "deltas" / digits[:2] / digits[2:]

    def get(self, digest: str, manifest: Manifest, fetch: Fetch, origin: str, *, fresh: bool = False) -> Path:
        """The folder of a delta, checked; fetched when it is not there or damaged.

        Args:
            fetch: copies one file, checked, to a new place.
            origin: the reference it is pulled by.
            fresh: fetch it even if it is there.

        Raises:
            IntegrityError: the source itself is damaged.
            StorageError: the cache is full or not writable.
        """
        folder = self.folder(digest)
        if fresh or self.damage(digest) is not None:
            self._fill(folder, manifest, fetch, origin)
        else:
            with contextlib.suppress(OSError):  # a cache that may only be read serves all the same
                os.utime(folder)
        return folder

    def _fill(self, folder: Path, manifest: Manifest, fetch: Fetch, origin: str) -> None:
        with storage_errors("Caching a delta", self.root), staging(self.root / "staging") as stage:
            delta = stage / "delta"
            delta.mkdir()
            for entry in manifest.files:
                fetch(entry, delta / entry.path)
            (delta / MANIFEST).write_bytes(manifest.to_bytes())
            (delta / ORIGIN).write_text(json.dumps({"origin": origin}), "utf-8")
            folder.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # most often there is none
                os.replace(folder, stage / "old")
            try:
                os.replace(delta, folder)
            except BaseException as error:
                if (stage / "old").exists() and not folder.exists():
                    os.replace(stage / "old", folder)
                # Another process may have been faster with the same bytes.
                if (
                    not isinstance(error, OSError)
                    or self.damage(f"sha256:{folder.parent.name}{folder.name}") is not None
                ):
                    raise

    def manifest(self, digest: str) -> Manifest | None:
        """The manifest of a delta that is in the cache whole; None if it is not."""
        if self.damage(digest) is not None:
            return None
        return Manifest.from_bytes((self.folder(digest) / MANIFEST).read_bytes(), digest)

    def damage(self, digest: str) -> str | None:
        """What is wrong with a delta in the cache, in words; None if nothing is."""
        folder = self.folder(digest)
        try:
            manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes(), digest)
            for entry in manifest.files:
                found, _ = sha256_file(folder / entry.path)
                if found != entry.sha256:
                    raise IntegrityError(entry.path, f"sha256:{entry.sha256}", f"sha256:{found}")
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (DeltaHubError, OSError) as error:
            return str(error)
        return None

    def entries(self) -> Iterator[Cached]:
        """Every delta in the cache."""
        for folder in sorted((self.root / "deltas").glob("??/*")):
            origin = pulled_as(folder) or "unknown"
            digest = f"sha256:{folder.parent.name}{folder.name}"
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # pruned meanwhile, or no delta at all
                size = sum(path.stat().st_size for path in folder.iterdir())
                yield Cached(digest, folder, origin, size, folder.stat().st_mtime)

    def supply(self, sha256: str, into: Path) -> str:
        """Copy a file of any delta in the cache to a new place.

        Args:
            sha256: of the file, or of a delta's manifest, 64 hex digits.

        Returns:
            The sha256 of the copy.

        Raises:
            NotFoundError: no delta in the cache has it.
        """
        for folder in sorted((self.root / "deltas").glob("??/*")):
            digits = f"{folder.parent.name}{folder.name}"
            with contextlib.suppress(DeltaHubError, OSError):
                manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes(), f"sha256:{digits}")
                held = {digits: MANIFEST} | {entry.sha256: entry.path for entry in manifest.files}
                if sha256 in held and sha256_file(folder / held[sha256])[0] == sha256:
                    return copy_hashed(folder / held[sha256], into)[0]
        raise NotFoundError(f"sha256:{sha256}", (str(self.root),))

    def prune(self, older: float = 0.0) -> list[Cached]:
        """Remove the deltas that were not used for `older` seconds."""
        limit = time.time() - older
        return self._remove(entry for entry in self.entries() if entry.used <= limit)

    def keep(self, digests: Collection[str]) -> list[Cached]:
        """Remove all deltas but those with these digests."""
        return self._remove(entry for entry in self.entries() if entry.digest not in digests)

    def _remove(self, entries: Iterable[Cached]) -> list[Cached]:
        removed = list(entries)
        with storage_errors("Pruning the cache", self.root):
            for entry in removed:
                with contextlib.suppress(FileNotFoundError):  # another process prunes too
                    shutil.rmtree(entry.folder)
        return removed


def copy_delta(manifest: Manifest, folder: Path, to: Path) -> None:
    """Copy a delta out of the cache, the config last: it vouches for the rest.

    Args:
        to: a folder that is new or holds a delta.

    Raises:
        CheckpointError: it holds files of something else that would be overwritten.
    """
    from deltahub.checkpoint import CONFIG

    taken = [entry.path for entry in manifest.files if (to / entry.path).exists()]
    if taken and not (to / CONFIG).is_file():
        msg = f"{to} holds no delta, and its {', '.join(taken)} would be overwritten. Choose a new folder."
        raise CheckpointError(msg)
    with storage_errors("Copying the delta", to):
        to.mkdir(parents=True, exist_ok=True)
        with staging(to) as stage:
            for entry in manifest.files:
                copy_hashed(folder / entry.path, stage / entry.path)
            move_all(stage, to, sorted((entry.path for entry in manifest.files), key=CONFIG.__eq__))
