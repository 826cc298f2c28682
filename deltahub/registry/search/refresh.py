"""Updates of the search index: only changed documents are read again, and only changed folders are listed.

A folder is skipped while its stamp proves that nothing changed: see `deltahub.stores.folder_stamps`. A manual edit within a file leaves the folder's stamp as it is; it is seen when the folder is
listed again, after ten minutes at most.

All changes are found before the first document is read, so that progress can be reported against a total. If two processes
update the same index, the second waits for the first and looks again.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from deltahub.errors import (
    CheckpointError,
    DeltaHubError,
    Outcome,
    StorageError,
    UnreachableError,
    outcome,
)
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import RECORD, record_of
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.search.tables import forget, remember
from deltahub.stores.folder_stamps import FolderStamp, folder_stamps
from deltahub.stores.threads import map_concurrently

TRUST: Final = 600.0  # seconds for which a folder is skipped
MANY: Final = 5_000  # number of documents that takes some seconds to read
_PAGE: Final = 1_000  # changed documents between two progress reports

# Called with the number of documents read, and the number to read as far as known.
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class _Looked:
    """A folder that is not skipped.

    Attributes:
        folder: with a "/" at its end.
        state: its new state if all its documents can be read; None if the folder is gone.
        changed: the documents to read, with their stamps.
        stale: the documents to forget.
    """

    folder: str
    state: FolderStamp | None
    changed: Mapping[str, str]
    stale: list[str]


def refresh(database: sqlite3.Connection, registry: Registry, report: Told | None = None) -> None:
    """Bring the index up to date with the reference documents; the caller commits.

    Args:
        report: called with the numbers of documents read and to read; not called if there are none.

    Raises:
        sqlite3.Error: the index is damaged or not writable, or another process writes it for longer than the timeout.
    """
    before = _commits(database)
    looked = list(_look(database, registry, report))
    if not looked:
        return
    database.execute("BEGIN IMMEDIATE")
    if _commits(database) != before:  # another process updated it meanwhile
        looked = list(_look(database, registry, report))
    if stale := [key for each in looked for key in each.stale]:
        forget(database, stale)
    stamps = {key: stamp for each in looked for key, stamp in each.changed.items()}
    unread = _read(database, registry, stamps, report)
    for each in looked:
        if each.state is None:
            database.execute("DELETE FROM folders WHERE folder = ?", (each.folder,))
        else:
            settled = each.state.settled if unread.isdisjoint(each.changed) else None
            row = (each.folder, each.state.stamp, each.state.seen, settled)
            database.execute("REPLACE INTO folders VALUES (?, ?, ?, ?)", row)


def _commits(database: sqlite3.Connection) -> int:
    """Return a number that changes when another connection writes the index."""
    version: int = database.execute("PRAGMA data_version").fetchone()[0]
    return version


def _look(database: sqlite3.Connection, registry: Registry, report: Told | None) -> Iterator[_Looked]:
    """Iterate over the folders changed since they were last listed, or with a stamp to store."""
    now, total = time.time(), 0
    stamps = folder_stamps(registry.store, REFS)
    rows = database.execute("SELECT folder, stamp, seen, settled FROM folders")
    states = {folder: FolderStamp(*state) for folder, *state in rows}
    for folder in states.keys() - stamps.keys():
        yield _Looked(folder, None, {}, [*_documents(database, folder)])
    for folder, stamp in stamps.items():
        before = states.get(folder)
        if before and before.proves(stamp, now, TRUST):
            continue
        indexed, current, changed = _documents(database, folder), dict[str, str](), dict[str, str]()
        listed = _keys(registry, folder)
        if listed is None:
            if before:
                yield _Looked(folder, None, {}, [*indexed])
            continue
        for key, key_stamp in listed:
            current[key] = key_stamp
            if indexed.get(key) != key_stamp and key.endswith(".json"):
                changed[key] = key_stamp
                if report and len(changed) % _PAGE == 0:
                    report(0, total + len(changed))
        stale = [key for key in indexed if current.get(key) != indexed[key]]
        total += len(changed)
        state = (before or FolderStamp(seen=now)).listed(stamp, now)
        if changed or stale or state != before:
            yield _Looked(folder, state, changed, stale)


def _keys(registry: Registry, folder: str) -> Iterator[tuple[str, str]] | None:
    """Return the documents in a folder with their stamps; None for an unreadable namespace, which must not hide the others."""
    listed = registry.store.keys(folder)
    if folder == REFS:
        return listed
    try:
        return itertools.chain([*itertools.islice(listed, 1)], listed)
    except UnreachableError:
        raise
    except StorageError as error:
        from deltahub.log import LOGGER  # late: hardly ever needed

        LOGGER.warning("%s cannot be listed: %s", folder, error)
        return None


def _documents(database: sqlite3.Connection, folder: str) -> dict[str, str]:
    """Return the indexed documents of a folder with their stamps."""
    after = f"{folder[:-1]}0"  # "0" is the character after "/"
    return dict(database.execute("SELECT key, stamp FROM documents WHERE key > ? AND key < ?", (folder, after)))


def _read(database: sqlite3.Connection, registry: Registry, stamps: Mapping[str, str], report: Told | None) -> set[str]:
    """Put documents into the index, and return the keys of unreadable ones."""
    if len(stamps) >= MANY:
        from deltahub.log import LOGGER  # late: hardly ever needed

        LOGGER.info(
            "Reading %s deltas of %s into the search index; from then on only what changed is read.",
            f"{len(stamps):,}",
            registry.place,
        )
    unread = set()

    def read(key: str) -> Outcome[tuple[bytes, str] | None]:
        stored = outcome(lambda: registry.store.read_tagged(key))
        if isinstance(stored, UnreachableError):
            raise stored
        return stored

    for number, (key, stored) in enumerate(
        zip(stamps, map_concurrently(read, stamps, registry.store.at_once), strict=True)
    ):
        if report:
            report(number, len(stamps))
        if stored is None:  # deleted since it was listed
            continue
        try:
            if isinstance(stored, DeltaHubError):
                raise stored
            document = _document(key, stored[0])
        except DeltaHubError as error:  # a damaged or unreadable document must not hide the others
            from deltahub.log import LOGGER  # late: hardly ever needed

            LOGGER.warning("%s cannot be listed: %s", key, error)
            unread.add(key)
            continue
        remember(database, key, stamps[key], document, _record(registry, document))
    return unread


def _document(key: str, data: bytes) -> ReferenceDocument:
    path = key[len(REFS) : -len(".json")]
    document = ReferenceDocument.from_bytes(data, path)
    if document.name != path:  # a copied file: no command finds a delta there
        msg = f"It is the reference document of {document.name}. Remove it, or push to {path} under its own name."
        raise CheckpointError(msg)
    return document


def _record(registry: Registry, document: ReferenceDocument) -> str | None:
    """Return the sha256 of the newest version's backbone record; if the summary lacks it, it is read once from the manifest."""
    if not document.versions:
        return None
    entry = document.versions[document.latest]
    if RECORD in entry.summary:
        said = entry.summary[RECORD]
        return said if isinstance(said, str) else None
    try:
        return record_of(registry.manifest(entry.digest))
    except DeltaHubError:  # damaged: `verify` reports it
        return None
