"""Looking after a cache: what is in it, what stays whatever happens, and what goes.

Any number of processes may do so at once, on any file system: nothing here relies on a lock. A delta goes by one rename, and only
then is it deleted; one that was used or pinned meanwhile comes back. A reader that finds it gone fetches it again
and keeps it from going again (`deltahub.cache.reading`). A pin is a file of its own, written before its delta is looked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from deltahub.cache.cache import Cache, pulled_as
from deltahub.cache.names import CachedNames
from deltahub.cache.reading import being_read, forget_killed
from deltahub.errors import DeltaHubError, NotFoundError, ReferenceSyntaxError
from deltahub.files import read_file, storage_errors
from deltahub.reference import LATEST, Reference, is_digest, is_version
from deltahub.reserve import freeing, spend

PINS: Final = "pins"
_AHEAD: Final = 86400.0  # seconds by which clocks may differ


@dataclass(frozen=True)
class Cached:
    """One delta in the cache.

    Attributes:
        digest: of its manifest.
        folder: where its files are.
        origin: the reference it was last pulled by.
        size: bytes of all its files.
        used: when it was last used, seconds since 1970.
        pinned: the reference that it is pinned as; None if it is not.
    """

    digest: str
    folder: Path
    origin: str
    size: int
    used: float
    pinned: str | None


# ----- what is there -----


def entries(cache: Cache) -> Iterator[Cached]:
    """Every delta in a cache, whole or not, by digest."""
    kept = pins(cache)
    for folder in _folders(cache):
        digest = f"sha256:{folder.parent.name}{folder.name}"
        with contextlib.suppress(OSError):  # removed meanwhile, or no delta at all
            size, used = _size(folder), folder.stat().st_mtime
            yield Cached(digest, folder, pulled_as(folder) or "unknown", size, used, kept.get(digest))


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
    with os.scandir(folder) as found:
        return sum(
            _size(each.path) if each.is_dir(follow_symlinks=False) else each.stat(follow_symlinks=False).st_size
            for each in found
        )


def find(cache: Cache, text: str) -> Cached:
    """The one delta in a cache that a digest, the start of one, or a reference means.

    Args:
        text: ``"sha256:3f9a51c0ffee"``, or a reference it was pulled or pinned by; source and version may be left out, and an
            alias or ``latest`` means what it meant when it was last pulled.

    Raises:
        NotFoundError: none is meant.
        ReferenceSyntaxError: several are.
    """
    known, names = list(entries(cache)), CachedNames(cache)
    name, digest = _name_and_digest(names, text)
    references = names.by_digest()
    meant = [
        entry
        for entry in known
        if entry.digest.startswith(digest)
        and any(
            name is None or _means(name, one)
            for one in (entry.origin, entry.pinned, *references.get(entry.digest, ()))
            if one
        )
    ]
    if not meant:
        raise NotFoundError(
            f"The delta {text}", (f"the cache {cache.root}",), tuple(entry.origin for entry in known[:3])
        )
    if len(meant) > 1:
        each = ", ".join(f"{entry.origin} ({entry.digest[:19]})" for entry in meant)
        msg = f"{text} means {len(meant)} deltas in the cache: {each}. Name one of them by its version or its digest."
        raise ReferenceSyntaxError(msg)
    return meant[0]


def _name_and_digest(names: CachedNames, text: str) -> tuple[str | None, str]:
    """Return what a delta must be called, None for anything, and how its digest must start."""
    if is_digest(text):
        return None, text
    try:
        reference = Reference.parse(text)
    except ReferenceSyntaxError:  # not all that deltas are pulled by is one
        return text, ""
    version = reference.version
    if version is None or is_version(version):
        return str(reference), ""
    name = str(reference.at(None))
    if is_digest(version):
        return name, version
    seen = names.recall(reference) or (names.recall(reference.at(None)) if version == LATEST else None)
    if seen:
        return name, seen.digest
    return (name if version == LATEST else str(reference)), ""


def _means(text: str, reference: str) -> bool:
    name = reference.partition(":")[2] or reference
    return text in (reference, name, reference.partition("@")[0], name.partition("@")[0])


# ----- pins -----


def pins(cache: Cache) -> dict[str, str]:
    """What is pinned: digest to the reference it is pinned as. A pin that cannot be read pins all the same."""
    return {
        f"sha256:{name[:64]}": _pin(cache.root / PINS / name) for name in _names(cache.root / PINS) if len(name) == 69
    }


def _pin(path: Path) -> str:
    try:
        return str(json.loads(read_file(path))["reference"])
    except (DeltaHubError, OSError, ValueError, LookupError, TypeError):
        return "unknown"


def pin(cache: Cache, digest: str, reference: str, fetch: Callable[[], object]) -> None:
    """Keep a delta whatever is pruned.

    Args:
        digest: of its manifest.
        reference: what to call it.
        fetch: brings it into the cache if it is not there. It is called once the pin holds, so that no prune in another
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


def unpin(cache: Cache, digest: str) -> bool:
    """Let a delta go with the others again.

    Returns:
        Whether it was pinned.
    """
    with storage_errors("Unpinning a delta", cache.root):
        try:
            _pin_path(cache, digest).unlink()
        except FileNotFoundError:
            return False
    return True


def _pin_path(cache: Cache, digest: str) -> Path:
    return cache.root / PINS / f"{digest.removeprefix('sha256:')}.json"


# ----- what goes -----


def prune(cache: Cache, *, older: float | None = None, most: int | None = None, dry_run: bool = False) -> list[Cached]:
    """Remove deltas that are not pinned, those not used for longest first.

    Args:
        older: those not used for so many seconds.
        most: then as many as it takes for the cache to hold at most so many bytes.
        dry_run: only say which.

    Returns:
        What was removed, or would be.

    Raises:
        StorageError: the cache is not writable.
    """
    known, now = sorted(entries(cache), key=lambda entry: entry.used), time.time()
    limit = now - older if older is not None else None
    left, going = sum(entry.size for entry in known), []
    for entry in known:
        if entry.used > now + _AHEAD and not dry_run:
            _set_used(entry, now)
        too_old = limit is not None and entry.used <= limit
        if not entry.pinned and (too_old or (most is not None and left > most)):
            going.append(entry)
            left -= entry.size
    return going if dry_run else _remove(cache, going)


def _set_used(entry: Cached, now: float) -> None:
    """Set right when a delta was used that a wrong clock used in the future, or it would stay until then."""
    with contextlib.suppress(OSError):
        os.utime(entry.folder, (now, now))


def keep(cache: Cache, digests: Collection[str]) -> list[Cached]:
    """Remove all deltas but those with these digests and those that are pinned.

    Raises:
        StorageError: the cache is not writable.
    """
    return _remove(cache, (entry for entry in entries(cache) if entry.digest not in digests and not entry.pinned))


def _remove(cache: Cache, going: Iterable[Cached]) -> list[Cached]:
    left, removed = deque(going), []
    forget_killed(cache.root)

    def remove() -> None:
        with storage_errors("Pruning the cache", cache.root), cache.stage() as stage:
            while left:
                if _remove_one(cache, left[0], stage / left[0].digest.removeprefix("sha256:")):
                    removed.append(left[0])
                left.popleft()

    freeing(partial(spend, cache.root), remove)
    return removed


def _remove_one(cache: Cache, entry: Cached, aside: Path) -> bool:
    """Remove a delta by way of a place aside, unless it is wanted or another process does so."""
    if _wanted(cache, entry, entry.folder):
        return False
    try:
        os.replace(entry.folder, aside)
    except FileNotFoundError:
        return False
    if _wanted(cache, entry, aside):
        with contextlib.suppress(OSError):  # fetched again meanwhile
            os.replace(aside, entry.folder)
            return False
    shutil.rmtree(aside)
    return True


def _wanted(cache: Cache, entry: Cached, folder: Path) -> bool:
    """Whether a delta was used or pinned since it was listed, or a reader wants it."""
    try:
        used = folder.stat().st_mtime > entry.used
        return used or _pin_path(cache, entry.digest).exists() or being_read(cache.root, entry.digest[7:])
    except FileNotFoundError:
        return False
