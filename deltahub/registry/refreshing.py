"""Bringing the search index up to date: only documents whose stamp changed are read again, and only folders that changed are listed.

A folder's stamp says that nothing was changed in it only if it is not new itself: a change within the same tick of the disk's
clock leaves it as it is. So a folder is passed over once it was listed two seconds or more after its stamp was first seen; whose
clock is right does not matter. What was changed by hand within a file, which leaves the folder as it is, is seen when the folder
is listed again, after ten minutes at most.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from typing import Final

from deltahub.errors import CheckpointError, DeltaHubError
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.summary import RECORD, record_of
from deltahub.registry.tables import forget, remember
from deltahub.stores.waiting import spread

TICK: Final = 2.0  # seconds: no disk's clock is coarser
TRUST: Final = 600.0  # seconds for which a folder is passed over


def refresh(database: sqlite3.Connection, registry: Registry) -> None:
    """Make the index say what the reference documents say."""
    now = time.time()
    stamps = _folders(registry)
    known = {row[0]: row[1:] for row in database.execute("SELECT folder, stamp, seen, settled FROM folders")}
    for folder in known.keys() - stamps.keys():
        forget(database, _documents(database, folder).keys())
        database.execute("DELETE FROM folders WHERE folder = ?", (folder,))
    for folder, stamp in stamps.items():
        before, seen, settled = known.get(folder, (None, now, None))
        same = stamp is not None and stamp == before and seen <= now
        if same and settled is not None and settled <= now < settled + TRUST:
            continue
        whole = _list(database, registry, folder)
        seen = seen if same else now
        after = (stamp or "", seen, now if whole and same and now - seen >= TICK else None)
        if after != (before, seen, settled):
            database.execute("REPLACE INTO folders VALUES (?, ?, ?, ?)", (folder, *after))


def _folders(registry: Registry) -> Mapping[str, str | None]:
    """The folders that hold documents, each with its stamp; all in one where the store gives no stamps."""
    store = registry.store
    if store.folder_stamp(REFS) is None:
        return {REFS: None}
    namespaces = [f"{REFS}{name}" for name in store.children(REFS) if name.endswith("/")]
    return {folder: store.folder_stamp(folder) for folder in namespaces}


def _documents(database: sqlite3.Connection, folder: str) -> dict[str, str]:
    """The documents of a folder that the index knows, with their stamps."""
    after = f"{folder[:-1]}0"  # "0" is the character after "/"
    return dict(database.execute("SELECT key, stamp FROM documents WHERE key > ? AND key < ?", (folder, after)))


def _list(database: sqlite3.Connection, registry: Registry, folder: str) -> bool:
    """Bring the documents of a folder up to date; whether all of them could be read."""
    known, current = _documents(database, folder), dict(registry.store.keys(folder))
    changed = [key for key, stamp in current.items() if known.get(key) != stamp and key.endswith(".json")]
    stale = [key for key in known if key not in current or known[key] != current[key]]
    if stale:
        forget(database, stale)
    whole = True
    read = spread(registry.store.read_tagged, changed, registry.store.at_once)
    for key, found in zip(changed, read, strict=True):
        if found is None:  # deleted since it was listed
            continue
        try:
            document = _document(key, found[0])
        except DeltaHubError as error:  # one damaged document must not hide the others
            import logging  # late: hardly ever needed

            logging.getLogger("deltahub").warning("%s cannot be listed: %s", key, error)
            whole = False
            continue
        remember(database, key, current[key], document, _record(registry, document))
    return whole


def _document(key: str, data: bytes) -> ReferenceDocument:
    path = key[len(REFS) : -len(".json")]
    document = ReferenceDocument.from_bytes(data, path)
    if document.name != path:  # a copied file: no command finds this delta there
        msg = f"It is the reference document of {document.name}. Remove it, or push to {path} under its own name."
        raise CheckpointError(msg)
    return document


def _record(registry: Registry, document: ReferenceDocument) -> str | None:
    """The sha256 of the newest version's record of its backbone; what says nothing of it is looked at itself, once."""
    if not document.versions:
        return None
    entry = document.versions[document.latest]
    if RECORD in entry.summary:
        said = entry.summary[RECORD]
        return said if isinstance(said, str) else None
    try:
        return record_of(registry.manifest(entry.digest))
    except DeltaHubError:  # damaged: `verify` says so
        return None
