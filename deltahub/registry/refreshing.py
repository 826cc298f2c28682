"""Bringing the search index up to date: only documents whose stamp changed are read again, and only folders that changed are listed.

A folder's stamp says that nothing was changed in it only if it is not new itself: a change within the same tick of the disk's
clock leaves it as it is. So a folder is passed over once it was listed two seconds or more after its stamp was first seen; whose
clock is right does not matter. What was changed by hand within a file, which leaves the folder as it is, is seen when the folder
is listed again, after ten minutes at most.

All that changed is found before the first document is read, so that whoever waits can be told how much there is to do. Of two processes
that bring the same index up to date, the second waits for the first and looks anew.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from deltahub.errors import CheckpointError, DeltaHubError, IntegrityError, StorageError, UnreachableError
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.summary import RECORD, record_of
from deltahub.registry.tables import forget, remember
from deltahub.stores.waiting import spread

TICK: Final = 2.0  # seconds: no disk's clock is coarser
TRUST: Final = 600.0  # seconds for which a folder is passed over
MANY: Final = 5_000  # documents that take some seconds to read
_PAGE: Final = 1_000  # documents found after which whoever waits hears of them

# Called with how many documents were read, and how many are to be read as far as is known.
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class _Looked:
    """A folder that is not passed over.

    Attributes:
        folder: with a "/" at its end.
        row: its stamp, when that was first seen, and when it settles if all its documents can be read; None if it is gone.
        changed: the documents to read, with their stamps.
        stale: the documents to forget.
    """

    folder: str
    row: tuple[str, float, float | None] | None
    changed: Mapping[str, str]
    stale: list[str]


def refresh(database: sqlite3.Connection, registry: Registry, told: Told | None = None) -> None:
    """Make the index say what the reference documents say; the caller commits.

    Args:
        told: hears how many documents are to be read, and how many have been; nothing if there are none.

    Raises:
        sqlite3.Error: it is damaged or cannot be written, or another process is writing it for longer than is waited for.
    """
    before = _commits(database)
    looked = list(_look(database, registry, told))
    if not looked:
        return
    database.execute("BEGIN IMMEDIATE")
    if _commits(database) != before:  # another process wrote what it found meanwhile
        looked = list(_look(database, registry, told))
    if stale := [key for each in looked for key in each.stale]:
        forget(database, stale)
    stamps = {key: stamp for each in looked for key, stamp in each.changed.items()}
    unread = _read(database, registry, stamps, told)
    for each in looked:
        if each.row is None:
            database.execute("DELETE FROM folders WHERE folder = ?", (each.folder,))
        else:
            stamp, seen, settles = each.row
            settled = settles if unread.isdisjoint(each.changed) else None
            database.execute("REPLACE INTO folders VALUES (?, ?, ?, ?)", (each.folder, stamp, seen, settled))


def _commits(database: sqlite3.Connection) -> int:
    """What changes when another connection writes the index."""
    found: int = database.execute("PRAGMA data_version").fetchone()[0]
    return found


def _look(database: sqlite3.Connection, registry: Registry, told: Told | None) -> Iterator[_Looked]:
    """The folders in which something changed since they were last listed, or whose stamp has to be kept."""
    now, total = time.time(), 0
    stamps = _folders(registry)
    rows = {row[0]: row[1:] for row in database.execute("SELECT folder, stamp, seen, settled FROM folders")}
    for folder in rows.keys() - stamps.keys():
        yield _Looked(folder, None, {}, [*_documents(database, folder)])
    for folder, stamp in stamps.items():
        before, seen, settled = rows.get(folder, (None, now, None))
        same = stamp is not None and stamp == before and seen <= now
        if same and settled is not None and settled <= now < settled + TRUST:
            continue
        known, current, changed = _documents(database, folder), dict[str, str](), dict[str, str]()
        listed = _keys(registry, folder)
        if listed is None:
            if folder in rows:
                yield _Looked(folder, None, {}, [*known])
            continue
        for key, found in listed:
            current[key] = found
            if known.get(key) != found and key.endswith(".json"):
                changed[key] = found
                if told and len(changed) % _PAGE == 0:
                    told(0, total + len(changed))
        stale = [key for key in known if current.get(key) != known[key]]
        total += len(changed)
        kept = seen if same or stamp is None else now
        row = (stamp or "", kept, now if same and now - kept >= TICK else None)
        if changed or stale or row != (before, seen, settled):
            yield _Looked(folder, row, changed, stale)


def _folders(registry: Registry) -> Mapping[str, str | None]:
    """The folders that hold documents, each with its stamp; all in one where the store gives no stamps."""
    store = registry.store
    if store.folder_stamp(REFS) is None:
        return {REFS: None}
    namespaces = [f"{REFS}{name}" for name in store.children(REFS) if name.endswith("/")]
    return {folder: store.folder_stamp(folder) for folder in namespaces}


def _keys(registry: Registry, folder: str) -> Iterator[tuple[str, str]] | None:
    """The documents in a folder with their stamps; None for a namespace that may not be read, which must not hide the others."""
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
    """The documents of a folder that the index knows, with their stamps."""
    after = f"{folder[:-1]}0"  # "0" is the character after "/"
    return dict(database.execute("SELECT key, stamp FROM documents WHERE key > ? AND key < ?", (folder, after)))


def _read(database: sqlite3.Connection, registry: Registry, stamps: Mapping[str, str], told: Told | None) -> set[str]:
    """Put documents into the index; those that cannot be read are returned."""
    if len(stamps) >= MANY:
        from deltahub.log import LOGGER  # late: hardly ever needed

        LOGGER.info(
            "Reading %s deltas of %s into the search index; from then on only what changed is read.",
            f"{len(stamps):,}",
            registry.place,
        )
    unread = set()

    def read(key: str) -> tuple[bytes, str] | IntegrityError | StorageError | None:
        try:
            return registry.store.read_tagged(key)
        except UnreachableError:
            raise
        except (IntegrityError, StorageError) as error:
            return error

    for number, (key, found) in enumerate(zip(stamps, spread(read, stamps, registry.store.at_once), strict=True)):
        if told:
            told(number, len(stamps))
        if found is None:  # deleted since it was listed
            continue
        try:
            if isinstance(found, DeltaHubError):
                raise found
            document = _document(key, found[0])
        except DeltaHubError as error:  # one damaged document, or one that may not be read, must not hide the others
            from deltahub.log import LOGGER  # late: hardly ever needed

            LOGGER.warning("%s cannot be listed: %s", key, error)
            unread.add(key)
            continue
        remember(database, key, stamps[key], document, _record(registry, document))
    return unread


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
