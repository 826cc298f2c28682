"""A registry: deltas with versions, aliases and tags, over any store.

    objects/sha256/<2>/<62>           files and manifests, immutable and shared by all deltas
    refs/<namespace>/<name>.json      the reference document of each delta
    journal/                          in a bucket: what changed, for searches; deleting it loses nothing

A push writes the objects, swaps the document, and adds an entry to the journal; a reader goes the other way, checks every byte and takes no lock. An
interruption leaves at most unreferenced objects.

During a rename, or after an interrupted one, the delta is stored under both names. First its old document records the move, then
the new one is written, then the old one becomes a redirect. Until then the old document is the delta, and the new one is a copy
that must not be built upon.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, Self

from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import (
    ConflictError,
    DeltaHubError,
    IntegrityError,
    NotFoundError,
    Outcome,
    StorageError,
    outcome,
)
from deltahub.reference import DeltaPath, Digest, Reference, as_delta_path
from deltahub.registry import stamps
from deltahub.registry.actor import Actor
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.gc_state import spare, store_spared
from deltahub.registry.journal.entries import record
from deltahub.registry.promotion.guard import guard
from deltahub.stores.base import Progress, Source, Store, Swap, object_key
from deltahub.stores.retry import SwapRetry
from deltahub.stores.threads import map_concurrently
from deltahub.text.suggestions import closest, mistyped

REFS: Final = "refs/"
_SUFFIX: Final = ".json"
_RECENT: Final = timedelta(days=1)  # longer than the time between two full listings of a registry with a journal
_HOPS: Final = 16  # from name to name, for what was renamed more than once


Change = Callable[[ReferenceDocument], ReferenceDocument]


class AlreadyMadeError(Exception):
    """The change of this request was made before: its answer was lost, and the request was repeated.

    Attributes:
        document: that holds the change.
    """

    def __init__(self, document: ReferenceDocument) -> None:
        super().__init__(document)
        self.document = document


def ref_key(path: str) -> str:
    """Return the key of a delta's reference document."""
    return f"{REFS}{path}{_SUFFIX}"


@dataclass(frozen=True)
class Found:
    """One version of a delta in a registry.

    Attributes:
        document: the delta's reference document.
        version: ``"v3"``.
        manifest: its manifest.
    """

    document: ReferenceDocument
    version: str
    manifest: Manifest

    @property
    def entry(self) -> Version:
        """The entry of the version in the reference document."""
        return self.document.versions[self.version]


def came_from(document: ReferenceDocument) -> str | None:
    """Return the delta's former name, if nothing changed since its rename."""
    last = document.log[-1] if document.log and not document.moved_to else None
    return last.before if last and last.action == "rename" else None


def is_copy(document: ReferenceDocument, original: ReferenceDocument | None) -> bool:
    """Check whether a document is the copy that an unfinished rename wrote under the new name.

    Args:
        original: the document under the name that `came_from` returns.
    """
    return original is not None and original.moving is not None and original.renamed()[0] == document


def _is_recent(document: ReferenceDocument) -> bool:
    """Check whether a document changed in the last day, or by a clock that is ahead."""
    try:
        return not document.log or not stamps.is_due(document.log[-1].time, stamps.now(), _RECENT)
    except (ValueError, TypeError):
        return True


class Registry:
    """The deltas in a store.

    Args:
        store: the store with the bytes.
        name: the name of this registry as a source.
    """

    def __init__(self, store: Store, name: str = "local") -> None:
        self.store = store
        self.name = name
        self._actor: Actor | None = None
        self._said: set[str] = set()  # old names whose rename was already logged

    @property
    def actor(self) -> Actor:
        """The one in whose name this registry is changed."""
        return self._actor or Actor.in_process()

    def acting(self, actor: Actor) -> Self:
        """Return this registry for changes in the name of somebody."""
        registry = copy.copy(self)
        registry._actor = actor
        return registry

    def document(self, path: str) -> ReferenceDocument:
        """Return the reference document of a delta.

        Args:
            path: ``"namespace/name"``.

        Raises:
            NotFoundError: the delta does not exist; the message suggests the nearest names.
        """
        document, _ = self.read(path)
        if document is None:
            raise self.unknown(path)
        return replace(document, moving=None)

    def read(self, path: str) -> tuple[ReferenceDocument | None, str | None]:
        """Return the reference document of a delta and its etag, following redirects; both None if it does not exist.

        Until a rename is done, the new name leads to the old one, whose document has `moving` set.
        """
        document, etag = self.current(path)
        if document and not document.moving:
            self._say_renamed(path, document.name)
        return document, etag

    def current(self, path: str) -> tuple[ReferenceDocument | None, str | None]:
        """Read a document like `read`, without logging a rename."""
        requested_path = path
        for _ in range(_HOPS):
            document, etag = self._tagged(path)
            if document is None:
                return None, None
            if document.moved_to is None:
                before = came_from(document)
                original, its_etag = self._tagged(before) if before else (None, None)
                return (original, its_etag) if is_copy(document, original) else (document, etag)
            path = document.moved_to
        raise IntegrityError(
            f"The reference document of {requested_path}",
            "a delta",
            "names that lead to each other",
            "Push it under a new name.",
        )

    def stored(self, path: str) -> ReferenceDocument | None:
        """Return the document stored under a name, without following a redirect; None if there is none.

        Raises:
            IntegrityError: it is damaged.
            NotFoundError: it is the document of another delta.
        """
        document, _ = self._tagged(path)
        return replace(document, moving=None) if document else None

    def _tagged(self, path: str) -> tuple[ReferenceDocument | None, str | None]:
        stored = self.store.read_tagged(ref_key(path))
        if stored is None:
            return None, None
        document = ReferenceDocument.from_bytes(stored[0], path)
        if document.name != path:  # also on a case-insensitive file system
            raise NotFoundError(path, (self.place,), (document.name,))
        return document, stored[1]

    def _say_renamed(self, old_name: str, name: str) -> None:
        if old_name != name and old_name not in self._said:
            from deltahub.log import LOGGER  # late: hardly ever needed

            self._said.add(old_name)
            LOGGER.warning("%s was renamed: it is %s now.", old_name, name)

    def unknown(self, path: str) -> NotFoundError:
        """Return the error for an unknown name, with the nearest names."""
        names: list[str] = []
        with contextlib.suppress(StorageError):  # a namespace without read permission
            names = self.names()
        return NotFoundError(path, (self.place,), closest(path, names))

    @property
    def place(self) -> str:
        """The registry's name and location, for people."""
        return self.name if self.name == self.store.url else f"{self.name} ({self.store.url})"

    def names(self) -> list[str]:
        """Return the names of all deltas, ``"namespace/name"``, sorted."""
        return [key[len(REFS) : -len(_SUFFIX)] for key, _ in self.store.keys(REFS) if key.endswith(_SUFFIX)]

    def neighbours(self, path: DeltaPath) -> tuple[DeltaPath, ...]:
        """Return the names of the deltas in a namespace, or in one of nearly its name, those most like `path` first."""
        folders = {folder[:-1] for folder in self.store.children(REFS) if folder.endswith("/")}
        near = {namespace.lower() for namespace in mistyped(path.namespace, folders)}
        paths = [
            neighbour
            for folder in sorted(folders)
            if folder.lower() in near
            for file in self.store.children(f"{REFS}{folder}/")
            if file.endswith(_SUFFIX) and (neighbour := as_delta_path(f"{folder}/{file.removesuffix(_SUFFIX)}"))
        ]
        return closest(path, paths, limit=max(len(paths), 1), cutoff=0)

    def resolve(self, reference: Reference) -> Found:
        """Return the version that a reference means, with its manifest.

        Raises:
            NotFoundError: the delta or version does not exist.
            IntegrityError: the manifest is damaged.
        """
        return self.found(self.document(reference.path), reference.version)

    def found(self, document: ReferenceDocument, name: str | None) -> Found:
        """Return the version of a delta named by a version, alias or digest; None means the newest."""
        version = document.resolve(name)
        return Found(document, version, self.manifest(document.versions[version].digest))

    def manifest(self, digest: Digest) -> Manifest:
        """Return a manifest by its digest.

        Raises:
            IntegrityError: it is damaged or missing.
        """
        try:
            data = self.store.read(object_key(digest.hex))
        except NotFoundError as error:
            remedy = "Repair it with `deltahub verify --repair`, or push the delta again."
            raise IntegrityError(f"The manifest {digest}", "the published bytes", "nothing", remedy) from error
        return Manifest.from_bytes(data, digest)

    def holds(self, digest: Digest) -> bool:
        """Check whether the manifest of this digest is stored here intact, whether or not anything refers to it."""
        try:
            self.manifest(digest)
        except IntegrityError:
            return False
        return True

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None = None) -> None:
        """Copy a file to a new path and verify it.

        Raises:
            IntegrityError: the stored bytes are not the published ones; nothing is left at `into`.
        """
        subject = f"{entry.path} in the registry {self.place}"
        remedy = "Push the delta again from an intact copy."
        try:
            sha256 = self.store.fetch(object_key(entry.sha256), into, progress, entry.size)
        except NotFoundError as error:
            raise IntegrityError(subject, Digest.of_hex(entry.sha256), "nothing", remedy) from error
        except IntegrityError as error:
            raise IntegrityError(subject, error.expected, error.found, remedy) from error
        if sha256 != entry.sha256:
            into.unlink()
            raise IntegrityError(subject, Digest.of_hex(entry.sha256), Digest.of_hex(sha256), remedy)

    def add(
        self, objects: Mapping[str, Source], path: DeltaPath, change: Change, progress: Progress | None = None
    ) -> ReferenceDocument:
        """Store objects, then swap the document that refers to them, safe from a garbage collection that runs meanwhile.

        Args:
            objects: see `Store.create`.
            change: see `update`.
        """
        generation = store_spared(self.store, objects, progress)
        document = self.update(path, change, may_create=True)
        if spare(self.store, objects.keys()) != generation:
            store_spared(self.store, objects)
        return document

    def stamp(self) -> tuple[str, str]:
        """Return the time and the author of a change made now."""
        return stamps.now(), self.actor.name

    def update(self, path: DeltaPath, change: Change, *, may_create: bool = False) -> ReferenceDocument:
        """Swap a document for a changed one; after a lost race, apply the change again to the winner's document.

        Args:
            change: makes the new document from the current one; it raises if applying it again would be wrong.
            may_create: whether the document may be created.

        Raises:
            NotFoundError: the document does not exist and may not be created.
            ConflictError: every attempt lost a race.
        """
        retry = SwapRetry()
        while True:
            document, etag = self.settled(path)
            if document is None:
                if not may_create:
                    raise self.unknown(path)
                document = ReferenceDocument(path)
            changed = self._made(document, change)
            if changed == document:
                self.settle([document])
                return document
            with retry:
                self.swap_document(changed, etag)
                return changed

    def _made(self, document: ReferenceDocument, change: Change) -> ReferenceDocument:
        """Return the changed document, its new log entries with the id of the request.

        Raises:
            AlreadyMadeError: the document holds the change of this request.
            RefusedMoveError: the rules of promotion do not allow it.
        """
        request = self._actor.request if self._actor else ""
        if request and any(move.request == request for move in document.log):
            self.settle([document])  # the process that made it may have been killed before it was findable
            raise AlreadyMadeError(document)
        changed = change(document)
        guard(self, self.actor, document, changed)
        if not request:
            return changed
        known = len(document.log)
        return replace(
            changed, log=(*changed.log[:known], *(replace(move, request=request) for move in changed.log[known:]))
        )

    def swap_document(self, document: ReferenceDocument, etag: str | None) -> None:
        """Swap the document stored under its name, and journal the change; on return both are durable.

        Args:
            etag: see `Store.swap`.

        Raises:
            ConflictError: the stored document has another etag. Nothing was changed.
        """
        self.store.swap(ref_key(document.name), document.to_bytes(), etag)
        record(self.store, [document.name])

    def settle(self, documents: Sequence[ReferenceDocument]) -> None:
        """Make documents durable, and journal recent changes: their writer may have been killed before it did so.

        Older changes without an entry have been found by a full listing: see `deltahub.registry.search.from_journal`.
        """
        self.store.settle([ref_key(document.name) for document in documents])
        record(self.store, [document.name for document in documents if _is_recent(document)])

    def settled(self, path: str) -> tuple[ReferenceDocument | None, str | None]:
        """Finish any pending rename, then read the document like `read`; no other change may come first."""
        while True:
            document, etag = self.read(path)
            if document is None or document.moving is None:
                return document, etag
            self._move(document, etag)

    def _move(self, document: ReferenceDocument, etag: str | None) -> None:
        """Finish a rename, or cancel it if the new name is not free; several processes may do so at once.

        The document to replace under the new name was fixed when the rename was decided, and etags never recur. So if the new name
        holds neither that document nor the new one, it never will, or another process has finished the rename.
        """
        assert document.moving
        moved, left = document.renamed()
        key, data = ref_key(moved.name), moved.to_bytes()
        with contextlib.suppress(ConflictError):
            self.store.swap(key, data, document.moving.over)
        there = self.store.read_tagged(key)
        outcome = replace(document, moving=None)
        if there and there[0] == data:
            record(self.store, [moved.name])  # also for another process that was killed before it did so
            outcome = left
        with contextlib.suppress(ConflictError):
            self.swap_document(outcome, etag)

    def update_all(self, changes: Mapping[DeltaPath, Change]) -> dict[DeltaPath, Outcome[ReferenceDocument]]:
        """Change many documents at once like `update`; missing ones are created.

        Args:
            changes: by path.

        Returns:
            By path the new document, or the error that kept the old one unchanged.

        Raises:
            StorageError: the store failed as a whole. Each document is the old one or the new one.
        """
        done: dict[DeltaPath, Outcome[ReferenceDocument]] = {}
        made: dict[DeltaPath, ReferenceDocument] = {}
        swaps: list[Swap] = []
        same: list[ReferenceDocument] = []
        read = map_concurrently(lambda path: outcome(lambda: self.settled(path)), changes, self.store.at_once)
        for (path, change), current in zip(changes.items(), read, strict=True):
            if isinstance(current, DeltaHubError):
                done[path] = current
                continue
            document = current[0] or ReferenceDocument(path)
            changed = outcome(partial(self._made, document, change))
            if isinstance(changed, DeltaHubError) or changed == document:
                done[path] = changed
                same += [document] if current[1] else []
                continue
            made[path] = changed
            swaps.append(Swap(ref_key(document.name), changed.to_bytes(), current[1]))
        self.settle(same)
        results = self.store.swap_all(swaps)
        record(
            self.store,
            [document.name for document, result in zip(made.values(), results, strict=True) if isinstance(result, str)],
        )
        for (path, document), swapped in zip(made.items(), results, strict=True):
            done[path] = document if isinstance(swapped, str) else swapped
            if isinstance(swapped, ConflictError):  # a lost race
                done[path] = outcome(partial(self.update, path, changes[path], may_create=True))
        return done
