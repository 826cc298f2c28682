"""Objects that are uploaded ahead of the version that refers to them.

A client sends a large file to a hub before the commit that names it. Until then a record, `hub/uploads/<namespace>/<name>/<sha256>`,
refers to the object, so that no garbage collection deletes it, and names the delta that it was sent to: a commit may use no other
upload. The commit removes the record after it has swapped the reference document, and a collection lists the records before it
reads the documents, so that it sees one or the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from deltahub.errors import ConflictError, IntegrityError
from deltahub.files.reserve import with_reserve
from deltahub.log import LOGGER
from deltahub.registry import direct_uploads, stamps
from deltahub.registry.gc_state import spare, store_spared
from deltahub.registry.hub_records import PARTS, UPLOADS, Kind
from deltahub.stores.base import DirectStore, Store


def keep(store: Store, path: str, sha256: str, file: Path, author: str) -> None:
    """Store an object for a delta, and record the upload; on return both are durable.

    Args:
        path: the delta, ``"namespace/name"``.
        sha256: of the file, 64 hex digits.
        file: the path of the bytes.

    Raises:
        IntegrityError: the file has another digest. Nothing was stored.
    """
    objects = {sha256: file}
    generation = store_spared(store, objects)
    record = {"time": stamps.now(), "author": author, "size": file.stat().st_size}
    _note(store, UPLOADS, _key(path, sha256), record)
    if spare(store, objects) != generation:
        store_spared(store, objects)


def keep_direct(store: DirectStore, path: str, sha256: str, size: int, key: str, author: str) -> None:
    """Do as `keep` with bytes that the client sent to the bucket itself.

    Args:
        key: where they arrived, from `direct_uploads.incoming_key`.

    Raises:
        NotFoundError: nothing arrived there.
        IntegrityError: other bytes did. Nothing was stored.
    """
    record = {"time": stamps.now(), "author": author, "size": size}
    direct_uploads.adopt(store, key, sha256, size, lambda: _note(store, UPLOADS, _key(path, sha256), record))


def size_of(store: Store, path: str, sha256: str) -> int | None:
    """Return the bytes of an object uploaded for a delta; None if it must be uploaded, also after its record was damaged."""
    size: int | None = (_noted(store, UPLOADS, _key(path, sha256)) or {}).get("size")
    return size


def forget(store: Store, path: str, objects: Iterable[str]) -> None:
    """Remove the records of objects that a version names now, or that are not needed."""
    for sha256 in objects:
        store.delete(_key(path, sha256))


def forget_all(store: Store, path: str) -> None:
    """Remove all upload records of a deleted delta, as the next delta with its name is another one."""
    for kind in (UPLOADS, PARTS):
        for key in [key for key, _ in store.keys(f"{kind.prefix}{path}/")]:
            store.delete(key)


def keep_part(store: Store, path: str, oid: str, number: int, sha256: str, file: Path, author: str) -> None:
    """Store and record one part of an incomplete file, like `keep`.

    Args:
        oid: the sha256 of the whole file.
        number: the part's number, from 1.
        sha256: the sha256 of the part.
    """
    keep(store, path, sha256, file, author)
    _note(store, PARTS, _part_key(path, oid, number), {"sha256": sha256, "time": stamps.now()})


def part(store: Store, path: str, oid: str, number: int) -> str | None:
    """Return the sha256 of a part of a file; None if it must be uploaded, also after its record was damaged."""
    sha256: str | None = (_noted(store, PARTS, _part_key(path, oid, number)) or {}).get("sha256")
    return sha256


def forget_parts(store: Store, path: str, oid: str, parts: Sequence[str]) -> None:
    """Remove the records of the parts of a complete file and of their objects.

    Args:
        parts: the sha256 of each, first to last.
    """
    forget(store, path, {*parts} - {oid})
    for number in range(1, len(parts) + 1):
        store.delete(_part_key(path, oid, number))


def waiting(store: Store) -> set[str]:
    """Return the sha256 of every object that waits for its version."""
    return {key.rpartition("/")[2] for key, _ in store.keys(UPLOADS.prefix)}


def expire(store: Store, grace: timedelta) -> None:
    """Remove damaged records, and those too old for a commit to name their uploads.

    Args:
        grace: how old a record must be.
    """
    direct_uploads.expire(store, grace)
    now = stamps.now()
    for kind in (UPLOADS, PARTS):
        for key in [key for key, _ in store.keys(kind.prefix)]:
            try:
                stored = kind.read(store, key)
            except IntegrityError:
                store.delete(key)
                continue
            if stored:
                _expire(store, kind, key, *stored, now, grace)


def _expire(store: Store, kind: Kind, key: str, record: dict[str, Any], etag: str, now: str, grace: timedelta) -> None:
    since = stamps.counted_from(record["time"], now, grace)
    if stamps.is_due(since, now, grace):
        store.delete(key)
    elif since != record["time"]:
        with contextlib.suppress(ConflictError):  # it was uploaded again just now
            with_reserve(store.spend_reserve, lambda: kind.write(store, key, {**record, "time": since}, etag))


def _key(path: str, sha256: str) -> str:
    return f"{UPLOADS.prefix}{path}/{sha256}"


def _part_key(path: str, oid: str, number: int) -> str:
    return f"{PARTS.prefix}{path}/{oid}/{number}"


def _note(store: Store, kind: Kind, key: str, record: Mapping[str, Any]) -> None:
    """Write a record, replacing any existing one."""
    with contextlib.suppress(ConflictError):  # a concurrent upload of the same bytes
        stored = store.read_tagged(key)
        kind.write(store, key, record, stored[1] if stored else None)


def _noted(store: Store, kind: Kind, key: str) -> dict[str, Any] | None:
    """Return a record; None if it does not exist or is damaged, so that the bytes are uploaded again."""
    try:
        stored = kind.read(store, key)
    except IntegrityError as error:
        LOGGER.warning("%s", error)
        return None
    return stored[0] if stored else None
