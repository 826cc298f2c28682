"""Updates of the search index: only changed documents are read again, and only changed folders are listed.

A folder is skipped while its stamp proves that nothing changed: see `deltahub.stores.folder_stamps`. A manual edit within a file leaves the folder's stamp as it is; it is seen when the folder is
listed again, after ten minutes at most. A store without folder stamps, such as a bucket, has a journal instead: see `from_journal`.

All changes are found before the first document is read, so that progress can be reported against a total. If two processes
update the same index, the second waits for the first and looks again.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from deltahub.errors import StorageError, UnreachableError
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.search.contents import Contents
from deltahub.registry.search.from_journal import Upkeep, refresh_from_journal
from deltahub.registry.search.read_documents import Told, read_documents
from deltahub.stores.folder_stamps import FolderStamp, folder_stamps

TRUST: Final = 600.0  # seconds for which a folder is skipped
_PAGE: Final = 1_000  # changed documents between two progress reports


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


def refresh(contents: Contents, registry: Registry, report: Told | None = None) -> Upkeep | None:
    """Bring a catalogue up to date with the reference documents; the caller commits.

    Args:
        report: called with the numbers of documents read and to read; not called if there are none.

    Returns:
        For a store with a journal, work to do once the catalogue is committed.

    Raises:
        sqlite3.Error: the index is damaged or not writable, or another process writes it for longer than the timeout.
    """
    if registry.store.folder_stamp(REFS) is None:
        return refresh_from_journal(contents, registry, report)
    before = contents.commits()
    looked = list(_look(contents, registry, report))
    if not looked:
        return None
    contents.lock()
    if contents.commits() != before:  # another process updated it meanwhile
        looked = list(_look(contents, registry, report))
    if stale := [key for each in looked for key in each.stale]:
        contents.forget(stale)
    stamps: dict[str, str | None] = {key: stamp for each in looked for key, stamp in each.changed.items()}
    unread = read_documents(contents, registry, stamps, report)
    for each in looked:
        state = each.state
        if state and not unread.isdisjoint(each.changed):
            state = replace(state, settled=None)
        contents.set_folder(each.folder, state)
    return None


def _look(contents: Contents, registry: Registry, report: Told | None) -> Iterator[_Looked]:
    """Iterate over the folders changed since they were last listed, or with a stamp to store."""
    now, total = time.time(), 0
    stamps = folder_stamps(registry.store, REFS)
    states = contents.folders()
    for folder in states.keys() - stamps.keys():
        yield _Looked(folder, None, {}, [*contents.stamps(folder)])
    for folder, stamp in stamps.items():
        before = states.get(folder)
        if before and before.proves(stamp, now, TRUST):
            continue
        indexed, current, changed = contents.stamps(folder), dict[str, str](), dict[str, str]()
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
