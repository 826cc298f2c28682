"""Journal entries: one small key for each changed reference document, written after the document and before the change is acknowledged.

    journal/new/<time>-<id>=<namespace>=<name>    an entry; everything is in the key
    journal/head.json, journal/parts/<id>         the snapshot that entries are folded into: see `snapshot`

So one LIST names all documents that changed. Keys sort by time for people only: no reader relies on any clock, because it compares
the *set* of listed entries with the set it has processed, and an entry that appears late, or from a writer whose clock is wrong, is
new to it all the same.

Only stores without folder stamps have a journal: in a folder, `deltahub.stores.folder_stamps` detects changes without one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from deltahub.errors import StorageError, UnreachableError
from deltahub.reference import DeltaPath, as_delta_path
from deltahub.stores.base import Store, Swap

JOURNAL: Final = "journal/"
NEW: Final = f"{JOURNAL}new/"
_SEPARATOR: Final = "="  # occurs in no name


def record(store: Store, paths: Iterable[str]) -> None:
    """Add an entry for each changed document; on return they are durable.

    Args:
        store: the registry's store; one with folder stamps needs no journal.
        paths: ``"namespace/name"`` of each changed document.

    Raises:
        UnreachableError: the store gave no answer. The documents are changed; repeating the change adds the entries.
    """
    if store.folder_stamp("refs/") is not None:
        return
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
    keys = [entry_key(time, path) for path in paths]
    try:
        for written in store.swap_all([Swap(key, b"{}", None) for key in keys]):
            if not isinstance(written, str):
                raise written
    except UnreachableError:
        raise
    except StorageError as error:  # the store takes documents but not entries: a full listing finds the change
        from deltahub.log import LOGGER  # late: hardly ever needed

        LOGGER.warning("The change is stored, but searches may not find it for some hours: %s", error)


def entry_key(time: str, path: str) -> str:
    """Return a new key for the entry of a document, ``"namespace/name"``."""
    return f"{NEW}{time}-{uuid.uuid4().hex[:16]}={path.replace('/', _SEPARATOR)}"


def path_of(key: str) -> DeltaPath | None:
    """Return the delta that an entry names; None if its key is not well formed."""
    parts = key.removeprefix(NEW).split(_SEPARATOR)
    return as_delta_path("/".join(parts[1:])) if len(parts) == 3 else None
