"""Updates of a catalogue from the journal of a bucket: one LIST shows what is new.

A reader compares the listed entries with those it has processed, and reads the documents that new ones name; if it is new itself,
or was away for long, it takes over a snapshot first: see `deltahub.registry.journal`. All documents are listed

- if there is no snapshot, as in a small registry or one that no reader may write to;
- every six hours, by the first reader that comes: this finds what was written without an entry, by an older deltahub or by a
  writer killed between its document and its entry. It journals what it finds, for the others.

So nothing depends on the journal but speed: without it, or with a damaged one, all documents are listed, and the next reader that
may write makes a new snapshot.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Final, Self

from deltahub.errors import DeltaHubError, IntegrityError, NotFoundError, StorageError, UnreachableError
from deltahub.registry.journal.entries import JOURNAL, NEW, path_of, record
from deltahub.registry.journal.snapshot import HEAD, Head, Line, newest_lines, publish_head, read_head
from deltahub.registry.registry import REFS, Registry, ref_key
from deltahub.registry.search.contents import Contents
from deltahub.registry.search.entry import CatalogueEntry
from deltahub.registry.search.read_documents import Told, read_documents
from deltahub.stores.threads import map_concurrently

RELISTED: Final = 6 * 3600.0  # seconds after which all documents are listed again
SMALL: Final = 100  # documents up to which a registry needs no snapshot
LONG: Final = 400  # entries that are worth folding into a snapshot
_MOST: Final = 5_000  # entries folded at once

Upkeep = Callable[[], None]


@dataclass(frozen=True)
class Progress:
    """The state of a catalogue with regard to the journal.

    Attributes:
        stamp: of the head at the last refresh; empty if there was none.
        lineage: see `Head`; likewise `generation`.
        parts: keys of the parts that the catalogue contains.
        covered: see `Head`.
        entries: the entries processed, as far as they were still listed.
        unread: keys of the documents that could not be read.
        listed: when all documents were last listed, here or for the head, in seconds since 1970.
        refused: when the store last refused a snapshot.
    """

    stamp: str = ""
    lineage: str = ""
    generation: int = 0
    parts: frozenset[str] = frozenset()
    covered: frozenset[str] = frozenset()
    entries: frozenset[str] = frozenset()
    unread: frozenset[str] = frozenset()
    listed: float = 0.0
    refused: float = 0.0

    @classmethod
    def of(cls, contents: Contents) -> Self:
        """Return the state of a catalogue."""
        text = contents.state()
        stored: dict[str, Any] = json.loads(text) if text else {}
        values: dict[str, Any] = {key: frozenset(it) if isinstance(it, list) else it for key, it in stored.items()}
        return cls(**values)

    def store(self, contents: Contents) -> None:
        """Store it in the catalogue."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        contents.set_state(json.dumps(values, default=sorted))

    def with_head(self, stamp: str, head: Head | None) -> Progress:
        """Return the state of a catalogue that contains the parts of a head."""
        if head is None:
            return replace(self, stamp="", lineage="", generation=0, parts=frozenset(), covered=frozenset())
        parts = frozenset(part.key for part in head.parts)
        return replace(
            self,
            stamp=stamp,
            lineage=head.lineage,
            generation=head.generation,
            parts=parts,
            covered=head.covered,
            listed=max(self.listed, head.listed),
        )


@dataclass(frozen=True)
class _Look:
    """The state of a registry.

    Attributes:
        present: the keys below `JOURNAL`.
        stamp: of the head; empty without one.
        head: the head; None without one that can be read, and if the catalogue knows it already.
        documents: all documents with their stamps; None if they were not listed.
    """

    present: frozenset[str]
    stamp: str
    head: Head | None
    documents: dict[str, str] | None

    @property
    def entries(self) -> frozenset[str]:
        """The listed entries."""
        return frozenset(key for key in self.present if key.startswith(NEW))


def refresh_from_journal(contents: Contents, registry: Registry, report: Told | None = None) -> Upkeep | None:
    """Bring a catalogue up to date: see `deltahub.registry.search.refresh.refresh`."""
    before, progress = contents.commits(), Progress.of(contents)
    look = _look(registry, progress)
    if _is_new(contents, progress, look):
        contents.lock()
        if contents.commits() != before:  # another process updated it meanwhile
            progress = Progress.of(contents)
            look = _look(registry, progress)
        progress, unjournaled = _Update(contents, registry, progress, look, report).run()
        progress.store(contents)
    else:
        unjournaled = frozenset()
    if not _is_long(contents, progress, look):
        return None
    return partial(_fold, contents, registry, look, progress, unjournaled)


def _look(registry: Registry, progress: Progress) -> _Look:
    store, now = registry.store, time.time()
    present = _present(registry)  # first: an entry that is listed is younger than its document
    stamp, head = present.get(HEAD, ""), None
    if stamp and stamp != progress.stamp:
        head, _ = read_head(store)
    is_known = head is not None or (bool(stamp) and stamp == progress.stamp)
    listed = max(progress.listed, head.listed if head else 0.0)
    documents = None
    if not is_known:
        documents = dict(_documents(store.keys(REFS)))
    elif not listed <= now < listed + RELISTED:
        documents = dict(_documents(_keys_by_folder(registry)))
    return _Look(frozenset(present), stamp if is_known else "", head, documents)


def _present(registry: Registry) -> dict[str, str]:
    """Return the keys of the journal; none where they may not be listed, so that all documents are."""
    try:
        return dict(registry.store.keys(JOURNAL))
    except UnreachableError:
        raise
    except StorageError:
        return {}


def _keys_by_folder(registry: Registry) -> Iterator[tuple[str, str]]:
    """Iterate over the keys of all documents; the namespaces are listed concurrently."""
    store = registry.store
    folders = [f"{REFS}{name}" for name in store.children(REFS) if name.endswith("/")]
    listed = map_concurrently(lambda folder: list(store.keys(folder)), folders, store.at_once)
    return itertools.chain.from_iterable(listed)


def _documents(keys: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((key, stamp) for key, stamp in keys if key.endswith(".json"))


def _is_new(contents: Contents, progress: Progress, look: _Look) -> bool:
    """Check whether the catalogue has to change."""
    if look.documents is not None and look.stamp:
        return True  # the time of this listing is stored
    known = progress.stamp == look.stamp and look.entries <= progress.entries and not progress.unread
    return not known or (look.documents is not None and look.documents != contents.stamps(REFS))


@dataclass
class _Update:
    """One update of a catalogue."""

    contents: Contents
    registry: Registry
    progress: Progress
    look: _Look
    report: Told | None
    changed: dict[str, str | None] = field(default_factory=dict)  # documents to read, with their stamps

    def run(self) -> tuple[Progress, frozenset[str]]:
        """Return the new state, and the documents that changed without an entry."""
        look, progress, unjournaled = self.look, self.progress, frozenset[str]()
        documents, known = look.documents, look.head
        self.changed = dict.fromkeys([*sorted(progress.unread), *sorted(_named(look.entries - progress.entries))])
        if known and (known.lineage != progress.lineage or known.generation > progress.generation + 1):
            # Entries that it does not cover are read again: one that was processed may be older than one that is gone.
            self.changed = dict.fromkeys([*sorted(progress.unread), *sorted(_named(look.entries - known.covered))])
            try:
                self._take_over(known)
            except (NotFoundError, IntegrityError, OSError, ValueError, TypeError, KeyError):
                documents, known = dict(_documents(self.registry.store.keys(REFS))), None  # as without a snapshot
        if documents is not None:
            unjournaled = frozenset(self._compare(documents) - _named(look.entries - progress.entries))
            progress = replace(progress, listed=time.time())
        self.contents.forget(self.changed.keys())
        unread = read_documents(self.contents, self.registry, self.changed, self.report)
        for key in unread:
            self.contents.remember(key, "", None)
        if known or not look.stamp or look.head:
            progress = progress.with_head(look.stamp, known)
        return replace(progress, entries=look.entries, unread=frozenset(unread)), unjournaled

    def _take_over(self, head: Head) -> None:
        """Take over the parts that the catalogue does not contain, but for the documents to read."""
        stamps = self.contents.stamps(REFS)
        parts = [part for part in head.parts if part.key not in self.progress.parts]
        total = sum(part.lines for part in parts)
        for number, line in enumerate(newest_lines(self.registry.store, parts)):
            if self.report:
                self.report(number, total)
            key, stamp = ref_key(str(line["path"])), line["stamp"]
            if key in self.changed or stamps.get(key) == stamp:
                continue
            entry = CatalogueEntry.from_dict(line["entry"]) if line["entry"] else None
            if key in stamps:
                self.contents.forget([key])
            if stamp:
                self.contents.remember(key, str(stamp), entry)
            elif stamp is not None:
                self.changed[key] = None

    def _compare(self, documents: Mapping[str, str]) -> set[str]:
        """Find the documents that differ from the catalogue's, and forget those that are gone; return all of them."""
        stamps = self.contents.stamps(REFS)
        gone = stamps.keys() - documents.keys()
        self.contents.forget(gone)
        different = {key: stamp for key, stamp in documents.items() if stamps.get(key) != stamp}
        self.changed = {**dict.fromkeys(key for key in self.changed if key in documents), **different}
        return {*gone, *different}


def _is_long(contents: Contents, progress: Progress, look: _Look) -> bool:
    """Check whether the journal should be folded into a snapshot."""
    if 0 <= time.time() - progress.refused < RELISTED:
        return False
    if not progress.stamp:
        return len(look.entries) >= LONG or contents.count() > SMALL
    return look.documents is not None or len(look.entries - progress.covered) >= LONG


def _fold(contents: Contents, registry: Registry, look: _Look, progress: Progress, unjournaled: frozenset[str]) -> None:
    """Publish a new head; a store that refuses it is not asked again for some hours."""
    store = registry.store
    listed = progress.listed if look.documents is None else time.time()
    base, etag = read_head(store)
    known = (progress.lineage, progress.generation) if progress.stamp else look.head and _place(look.head)
    if (_place(base) if base else None) != known:
        return  # another process was faster
    if not progress.stamp:  # there is none, or its parts cannot be read
        base = None
    fresh = frozenset(sorted(look.entries - (base.covered if base else frozenset()))[:_MOST])
    keys = _named(fresh) | unjournaled
    whole = base is None or sum(part.lines for part in base.parts) > 2 * contents.count() + 10 * LONG
    lines = _lines(contents, None if whole else keys)
    try:
        if base and unjournaled:
            record(store, sorted(map(_path, unjournaled)))
        publish_head(store, base, etag, lines, fresh, listed, look.present, whole=whole)
    except DeltaHubError as error:
        from deltahub.log import LOGGER  # late: hardly ever needed

        LOGGER.debug("No snapshot of %s was written: %s", registry.place, error)
        replace(progress, refused=time.time()).store(contents)


def _named(entries: frozenset[str]) -> frozenset[str]:
    """Return the keys of the documents that entries name."""
    return frozenset(ref_key(path) for path in map(path_of, entries) if path)


def _place(head: Head) -> tuple[str, int]:
    return head.lineage, head.generation


def _lines(contents: Contents, keys: frozenset[str] | None) -> Iterator[Line]:
    """Iterate over the lines of a snapshot about documents; a missing document has neither stamp nor entry."""
    found = set()
    for key, stamp, entry in contents.entries(keys):
        found.add(key)
        yield {"path": _path(key), "stamp": stamp, "entry": entry}
    for key in sorted((keys or frozenset()) - found):
        yield {"path": _path(key), "stamp": None, "entry": None}


def _path(key: str) -> str:
    return key.removeprefix(REFS).removesuffix(".json")
