"""Objects that are stored ahead of the version that will name them.

Whoever sends a large file to a hub does so before the commit that names it. Until then a record, `hub/uploads/<namespace>/<name>/<sha256>`,
refers to the object, so that no collection takes it, and says to which delta it was sent: a commit may name nothing else. The commit
removes the record after it has swapped the reference document, and a collection lists the records before it reads the documents, so that
it sees one or the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from deltahub.errors import ConflictError, IntegrityError
from deltahub.log import LOGGER
from deltahub.registry import stamps
from deltahub.registry.hub_documents import PARTS, UPLOADS, Kind
from deltahub.registry.sweeping import spare, store_spared
from deltahub.reserve import freeing
from deltahub.stores.base import Store


def keep(store: Store, path: str, sha256: str, file: Path, author: str) -> None:
    """Store an object for a delta, and record that it was sent; on return both are durable.

    Args:
        path: the delta, ``"namespace/name"``.
        sha256: of the file, 64 hex digits.
        file: where the bytes are.

    Raises:
        IntegrityError: the file has another digest. Nothing was stored.
    """
    objects = {sha256: file}
    generation = store_spared(store, objects)
    record = {"time": stamps.now(), "author": author, "size": file.stat().st_size}
    _note(store, UPLOADS, _key(path, sha256), record)
    if spare(store, objects) != generation:
        store_spared(store, objects)


def size_of(store: Store, path: str, sha256: str) -> int | None:
    """Bytes of an object that was sent to a delta; None if it was not, or if its record is damaged, so that it is sent again."""
    size: int | None = (_noted(store, UPLOADS, _key(path, sha256)) or {}).get("size")
    return size


def forget(store: Store, path: str, objects: Iterable[str]) -> None:
    """Remove the records of objects that a version names now, or that are not needed."""
    for sha256 in objects:
        store.delete(_key(path, sha256))


def forget_all(store: Store, path: str) -> None:
    """Remove the records of everything that was sent to a delta: it is deleted, and whatever has its name next is another one."""
    for kind in (UPLOADS, PARTS):
        for key in [key for key, _ in store.keys(f"{kind.prefix}{path}/")]:
            store.delete(key)


def keep_part(store: Store, path: str, oid: str, number: int, sha256: str, file: Path, author: str) -> None:
    """The same of one part of a file that is not whole yet.

    Args:
        oid: the sha256 of the whole.
        number: of the part, from 1.
        sha256: of the part.
    """
    keep(store, path, sha256, file, author)
    _note(store, PARTS, _part_key(path, oid, number), {"sha256": sha256, "time": stamps.now()})


def part(store: Store, path: str, oid: str, number: int) -> str | None:
    """The sha256 of one part of a file; None if it was not sent, or if its record is damaged, so that it is sent again."""
    sha256: str | None = (_noted(store, PARTS, _part_key(path, oid, number)) or {}).get("sha256")
    return sha256


def forget_parts(store: Store, path: str, oid: str, parts: Sequence[str]) -> None:
    """Remove the records of the parts of a file, and of the objects that they are: it is whole now.

    Args:
        parts: the sha256 of each, first to last.
    """
    forget(store, path, {*parts} - {oid})
    for number in range(1, len(parts) + 1):
        store.delete(_part_key(path, oid, number))


def waiting(store: Store) -> set[str]:
    """The sha256 of every object that waits for its version."""
    return {key.rpartition("/")[2] for key, _ in store.keys(UPLOADS.prefix)}


def expire(store: Store, grace: timedelta) -> None:
    """Remove the records of what was sent so long ago that no commit will name it, and damaged ones.

    Args:
        grace: how old a record must be.
    """
    now = stamps.now()
    for kind in (UPLOADS, PARTS):
        for key in [key for key, _ in store.keys(kind.prefix)]:
            try:
                found = kind.read(store, key)
            except IntegrityError:
                store.delete(key)
                continue
            if found:
                _expire(store, kind, key, *found, now, grace)


def _expire(store: Store, kind: Kind, key: str, record: dict[str, Any], etag: str, now: str, grace: timedelta) -> None:
    since = stamps.counted_from(record["time"], now, grace)
    if stamps.is_due(since, now, grace):
        store.delete(key)
    elif since != record["time"]:
        with contextlib.suppress(ConflictError):  # it is sent again just now
            freeing(store.spend_reserve, lambda: kind.write(store, key, {**record, "time": since}, etag))


def _key(path: str, sha256: str) -> str:
    return f"{UPLOADS.prefix}{path}/{sha256}"


def _part_key(path: str, oid: str, number: int) -> str:
    return f"{PARTS.prefix}{path}/{oid}/{number}"


def _note(store: Store, kind: Kind, key: str, record: Mapping[str, Any]) -> None:
    """Write a record, in place of any that is there."""
    with contextlib.suppress(ConflictError):  # it was sent twice at once
        known = store.read_tagged(key)
        kind.write(store, key, record, known[1] if known else None)


def _noted(store: Store, kind: Kind, key: str) -> dict[str, Any] | None:
    """A record; None if there is none, or if it is damaged: then it is as good as none, and what it tells of is sent again."""
    try:
        found = kind.read(store, key)
    except IntegrityError as error:
        LOGGER.warning("%s", error)
        return None
    return found[0] if found else None
