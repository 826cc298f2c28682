"""Objects that are stored ahead of the version that will name them.

Whoever sends a large file to a hub does so before the commit that names it. Until then a record, `hub/uploads/<namespace>/<name>/<sha256>`,
refers to the object, so that no collection takes it, and says to which delta it was sent: a commit may name nothing else. The commit
removes the record after it has swapped the reference document, and a collection lists the records before it reads the documents, so that
it sees one or the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from deltahub.errors import ConflictError
from deltahub.manifest import canonical_json
from deltahub.registry import stamps
from deltahub.registry.sweeping import spare, store_spared
from deltahub.schema import parse
from deltahub.stores.base import Store

PREFIX: Final = "hub/uploads/"
PARTS: Final = "hub/parts/"  # which objects are the parts of a file that is not whole yet
_SHORTEST: Final = timedelta(days=1)  # that an upload waits for its commit, whatever a collection's grace


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
    record = canonical_json({"time": stamps.now(), "author": author, "size": file.stat().st_size})
    with contextlib.suppress(ConflictError):  # it was sent twice at once
        known = store.read_tagged(_key(path, sha256))
        store.swap(_key(path, sha256), record, known[1] if known else None)
    if spare(store, objects) != generation:
        store_spared(store, objects)


def size_of(store: Store, path: str, sha256: str) -> int | None:
    """Bytes of an object that was sent to a delta; None if it was not."""
    found = store.read_tagged(_key(path, sha256))
    size = _record(found[0]).get("size") if found else None
    return size if isinstance(size, int) else None


def forget(store: Store, path: str, objects: Iterable[str]) -> None:
    """Remove the records of objects that a version names now, or that are not needed."""
    for sha256 in objects:
        store.delete(_key(path, sha256))


def waiting(store: Store) -> set[str]:
    """The sha256 of every object that waits for its version."""
    return {key.rpartition("/")[2] for key, _ in store.keys(PREFIX)}


def expire(store: Store, grace: timedelta) -> None:
    """Remove the records of what was sent so long ago that no commit will name it.

    Args:
        grace: how old a record must be; a day at least.
    """
    oldest = datetime.now(UTC) - max(grace, _SHORTEST)
    for key, _ in [*store.keys(PREFIX), *store.keys(PARTS)]:
        if (found := store.read_tagged(key)) and _time(_record(found[0])) < oldest:
            store.delete(key)


def _key(path: str, sha256: str) -> str:
    return f"{PREFIX}{path}/{sha256}"


def _record(data: bytes) -> dict[str, Any]:
    try:
        found = parse(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _time(record: dict[str, Any]) -> datetime:
    try:
        return datetime.fromisoformat(str(record.get("time")))
    except ValueError:  # damaged: as good as none
        return datetime.min.replace(tzinfo=UTC)
