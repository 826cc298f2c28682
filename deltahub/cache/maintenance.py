"""Cache maintenance: listing, pinning and pruning.

Any number of processes may run it at once, on any file system: nothing here relies on a lock. A delta is first moved aside by one
rename and then deleted; if it was used or pinned meanwhile, it is moved back. A reader that misses one fetches it again
and protects it from removal (`deltahub.cache.cache`). A pin is a file of its own, written before its delta is looked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from deltahub.cache.cache import Cache, digest_in_path, forget_killed, is_being_read, pulled_reference
from deltahub.cache.remembered import CachedNames
from deltahub.errors import DeltaHubError, NotFoundError, ReferenceSyntaxError
from deltahub.files.atomic import read_file, storage_errors
from deltahub.files.reserve import release_piece, with_reserve
from deltahub.reference import LATEST, Digest, Reference, is_digest, is_version

PINS: Final = "pins"
_PIN: Final = re.compile(r"[0-9a-f]{64}\.json")
_AHEAD: Final = 86400.0  # seconds; the largest tolerated clock skew


@dataclass(frozen=True)
class Cached:
    """One delta in the cache.

    Attributes:
        digest: the digest of its manifest.
        folder: the folder with its files.
        origin: the reference it was last pulled by.
        size: bytes of all its files.
        used: when it was last used, seconds since 1970.
        pinned: the reference that it is pinned as; None if it is not.
    """

    digest: Digest
    folder: Path
    origin: str
    size: int
    used: float
    pinned: str | None


# ----- listing -----


def entries(cache: Cache) -> Iterator[Cached]:
    """Iterate over every delta in a cache, intact or not, sorted by digest."""
    pinned_references = pins(cache)
    for folder in _folders(cache):
        with contextlib.suppress(OSError, ReferenceSyntaxError):  # removed meanwhile, or not a delta
            digest = digest_in_path(folder)
            size, used = _size(folder), folder.stat().st_mtime
            yield Cached(
                digest, folder, pulled_reference(folder) or "unknown", size, used, pinned_references.get(digest)
            )


def _folders(cache: Cache) -> Iterator[Path]:
    root = cache.root / "deltas"
    for shelf in _names(root):
        if len(shelf) == 2:
            yield from (root / shelf / name for name in _names(root / shelf) if len(name) == 62)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(folder: Path | str) -> int:
    with os.scandir(folder) as children:
        return sum(
            _size(child.path) if child.is_dir(follow_symlinks=False) else child.stat(follow_symlinks=False).st_size
            for child in children
        )


def find(cache: Cache, text: str) -> Cached:
    """Find the only cached delta with a digest, a digest prefix, or a reference.

    Args:
        text: ``"sha256:3f9a51c0ffee"``, or a reference it was pulled or pinned by; source and version may be left out, and an
            alias or ``latest`` has the meaning of its last pull.

    Raises:
        NotFoundError: no delta matches.
        ReferenceSyntaxError: several match.
    """
    deltas, names = list(entries(cache)), CachedNames(cache)
    name, digest = _name_and_digest(names, text)
    references = names.by_digest()
    matches = [
        entry
        for entry in deltas
        if entry.digest.startswith(digest)
        and any(
            name is None or _is_name_of(name, candidate)
            for candidate in (entry.origin, entry.pinned, *references.get(entry.digest, ()))
            if candidate
        )
    ]
    if not matches:
        raise NotFoundError(
            f"The delta {text}", (f"the cache {cache.root}",), tuple(entry.origin for entry in deltas[:3])
        )
    if len(matches) > 1:
        listing = ", ".join(f"{entry.origin} ({entry.digest.short})" for entry in matches)
        msg = f"{text} means {len(matches)} deltas in the cache: {listing}. Name one of them by its version or its digest."
        raise ReferenceSyntaxError(msg)
    return matches[0]


def _name_and_digest(names: CachedNames, text: str) -> tuple[str | None, str]:
    """Return the name that a delta must have, None for any, and the start of its digest."""
    if is_digest(text):
        return None, text
    try:
        reference = Reference.parse(text)
    except ReferenceSyntaxError:  # deltas can be pulled by links too
        return text, ""
    version = reference.version
    if version is None or is_version(version):
        return str(reference), ""
    name = str(reference.at(None))
    if is_digest(version):
        return name, version
    meaning = names.recall(reference) or (names.recall(reference.at(None)) if version == LATEST else None)
    if meaning:
        return name, meaning.digest
    return (name if version == LATEST else str(reference)), ""


def _is_name_of(text: str, reference: str) -> bool:
    name = reference.partition(":")[2] or reference
    return text in (reference, name, reference.partition("@")[0], name.partition("@")[0])


# ----- pins -----


def pins(cache: Cache) -> dict[Digest, str]:
    """Return the pinned digests, each with the reference it is pinned as. An unreadable pin file still protects its delta."""
    files = [cache.root / PINS / name for name in _names(cache.root / PINS) if _PIN.fullmatch(name)]
    return {Digest.of_hex(file.stem): _pin(file) for file in files}


def _pin(path: Path) -> str:
    try:
        return str(json.loads(read_file(path))["reference"])
    except (DeltaHubError, OSError, ValueError, LookupError, TypeError):
        return "unknown"


def pin(cache: Cache, digest: Digest, reference: str, fetch: Callable[[], object]) -> None:
    """Protect a delta from pruning.

    Args:
        digest: the digest of its manifest.
        reference: the name to show for it.
        fetch: brings it into the cache if it is missing. It is called after the pin is written, so that no prune in another
            process can come between.

    Raises:
        StorageError: the cache is full or not writable.
    """
    path = _pin_path(cache, digest)
    new = not path.exists()
    with storage_errors("Pinning a delta", cache.root), cache.stage() as stage:
        (stage / "pin").write_text(json.dumps({"reference": reference}), "utf-8")
        cache.place_file(stage / "pin", path)
    try:
        fetch()
    except BaseException:
        if new:
            path.unlink(missing_ok=True)
        raise


def unpin(cache: Cache, digest: Digest) -> bool:
    """Remove the pin of a delta, so that it can be pruned.

    Returns:
        Whether it was pinned.
    """
    with storage_errors("Unpinning a delta", cache.root):
        try:
            _pin_path(cache, digest).unlink()
        except FileNotFoundError:
            return False
    return True


def _pin_path(cache: Cache, digest: Digest) -> Path:
    return cache.root / PINS / f"{digest.hex}.json"


# ----- pruning -----


def prune(cache: Cache, *, older: float | None = None, most: int | None = None, dry_run: bool = False) -> list[Cached]:
    """Remove unpinned deltas, the least recently used first.

    Args:
        older: remove those not used for this many seconds.
        most: then remove more until the cache holds at most this many bytes.
        dry_run: remove nothing.

    Returns:
        The deltas that were removed, or would be.

    Raises:
        StorageError: the cache is not writable.
    """
    deltas, now = sorted(entries(cache), key=lambda entry: entry.used), time.time()
    limit = now - older if older is not None else None
    remaining_size, candidates = sum(entry.size for entry in deltas), []
    for entry in deltas:
        if entry.used > now + _AHEAD and not dry_run:
            _set_used(entry, now)
        too_old = limit is not None and entry.used <= limit
        if not entry.pinned and (too_old or (most is not None and remaining_size > most)):
            candidates.append(entry)
            remaining_size -= entry.size
    return candidates if dry_run else _remove(cache, candidates)


def _set_used(entry: Cached, now: float) -> None:
    """Correct a last use in the future, left by a wrong clock, as it would keep the delta until then."""
    with contextlib.suppress(OSError):
        os.utime(entry.folder, (now, now))


def keep(cache: Cache, digests: Collection[Digest]) -> list[Cached]:
    """Remove all deltas except those with these digests and pinned ones.

    Raises:
        StorageError: the cache is not writable.
    """
    return _remove(cache, (entry for entry in entries(cache) if entry.digest not in digests and not entry.pinned))


def _remove(cache: Cache, deltas: Iterable[Cached]) -> list[Cached]:
    queue, removed = deque(deltas), []
    forget_killed(cache.root)

    def remove() -> None:
        with storage_errors("Pruning the cache", cache.root), cache.stage() as stage:
            while queue:
                if _remove_one(cache, queue[0], stage / queue[0].digest.hex):
                    removed.append(queue[0])
                queue.popleft()

    with_reserve(partial(release_piece, cache.root), remove)
    return removed


def _remove_one(cache: Cache, entry: Cached, aside: Path) -> bool:
    """Move a delta aside and delete it, unless it is needed or another process removes it."""
    if _is_needed(cache, entry, entry.folder):
        return False
    try:
        os.replace(entry.folder, aside)
    except FileNotFoundError:
        return False
    if _is_needed(cache, entry, aside):
        with contextlib.suppress(OSError):  # fetched again meanwhile
            os.replace(aside, entry.folder)
            return False
    shutil.rmtree(aside)
    return True


def _is_needed(cache: Cache, entry: Cached, folder: Path) -> bool:
    """Check whether a delta was used or pinned since it was listed, or a reader needs it."""
    try:
        used = folder.stat().st_mtime > entry.used
        return used or _pin_path(cache, entry.digest).exists() or is_being_read(cache.root, entry.digest.hex)
    except FileNotFoundError:
        return False
