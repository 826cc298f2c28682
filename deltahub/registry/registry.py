"""A registry: deltas with versions, aliases and tags, over any store.

    objects/sha256/<2>/<62>           files and manifests, immutable and shared by all deltas
    refs/<namespace>/<name>.json      the reference document of each delta

A push writes the objects, then swaps the document; a reader goes the other way. An interruption leaves at most unreferenced
objects.

Names that differ only in upper and lower case are refused, as case-insensitive file systems and people confuse them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from deltahub.errors import ConflictError, DeltaHubError, Outcome, ReferenceSyntaxError, outcome
from deltahub.reference import DeltaPath, as_delta_path
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.gc_state import spare, store_spared
from deltahub.registry.reading import REFS, Found, Reader, ref_key
from deltahub.stores.base import Progress, Source, Store, Swap
from deltahub.stores.retry import SwapRetry
from deltahub.stores.threads import map_concurrently

_SUFFIX = ".json"


class Names:
    """The names in a registry; only the namespaces, and the names in those asked for, are listed, each once.

    Args:
        store: the registry's store.
        root: the common prefix of all reference documents' keys.
    """

    def __init__(self, store: Store, root: str) -> None:
        self._store = store
        self._root = root
        self._listed: dict[str, dict[str, str]] = {}  # folder to its entries by their lower-case names

    def refuse_twin(self, path: DeltaPath) -> None:
        """Add the name of a delta to be created.

        Raises:
            ReferenceSyntaxError: the name of another delta or namespace differs only in upper and lower case.
        """
        namespace, file = path.namespace, f"{path.name}{_SUFFIX}"
        known = self._in("").setdefault(f"{namespace}/".lower(), f"{namespace}/").rstrip("/")
        theirs = self._in(f"{known}/").get(file.lower(), "")
        if theirs and f"{known}/{theirs}" != f"{namespace}/{file}":
            raise _twin(path, f"{known}/{theirs.removesuffix(_SUFFIX)}")
        if known != namespace and self._in(f"{known}/"):  # an empty folder is not a namespace
            raise _twin(namespace, known)
        self._in(f"{namespace}/")[file.lower()] = file

    def twin(self, path: DeltaPath) -> DeltaPath | None:
        """Return the stored name of a delta from its name in any upper and lower case; None if there is none."""
        folder = self._in("").get(f"{path.namespace}/".lower(), "")
        file = self._in(folder).get(f"{path.name}{_SUFFIX}".lower()) if folder else None
        return as_delta_path(f"{folder}{file.removesuffix(_SUFFIX)}") if file else None

    def _in(self, folder: str) -> dict[str, str]:
        if folder not in self._listed:
            found = self._store.children(f"{self._root}{folder}")
            self._listed[folder] = {name.lower(): name for name in found}
        return self._listed[folder]


def _twin(new: str, old: str) -> ReferenceSyntaxError:
    msg = f"{new!r} and {old!r}, which exists, differ only in upper and lower case. Use the existing writing."
    return ReferenceSyntaxError(msg)


__all__ = ["REFS", "Change", "Found", "Registry", "ref_key"]

Change = Callable[[ReferenceDocument], ReferenceDocument]


class Registry(Reader):
    """Read and write access to the deltas in a store.

    Args:
        store: the store with the bytes.
        name: the name of this registry as a source.
    """

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
        return stamps.now(), stamps.author()

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
            changed = change(document)
            if changed == document:
                self.store.settle([ref_key(document.name)])
                return document
            with retry:
                self.store.swap(ref_key(document.name), changed.to_bytes(), etag)
                return changed

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
        outcome = left if there and there[0] == data else replace(document, moving=None)
        with contextlib.suppress(ConflictError):
            self.store.swap(ref_key(document.name), outcome.to_bytes(), etag)

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
        same: list[str] = []
        read = map_concurrently(lambda path: outcome(lambda: self.settled(path)), changes, self.store.at_once)
        for (path, change), found in zip(changes.items(), read, strict=True):
            if isinstance(found, DeltaHubError):
                done[path] = found
                continue
            document = found[0] or ReferenceDocument(path)
            changed = outcome(partial(change, document))
            if isinstance(changed, DeltaHubError) or changed == document:
                done[path] = changed
                same += [ref_key(document.name)] if found[1] else []
                continue
            made[path] = changed
            swaps.append(Swap(ref_key(document.name), changed.to_bytes(), found[1]))
        self.store.settle(same)
        for (path, document), swapped in zip(made.items(), self.store.swap_all(swaps), strict=True):
            done[path] = document if isinstance(swapped, str) else swapped
            if isinstance(swapped, ConflictError):  # a lost race
                done[path] = outcome(partial(self.update, path, changes[path], may_create=True))
        return done

    def known_names(self) -> Names:
        """Return the names that `refuse_twin` compares with, to share between many calls."""
        return Names(self.store, REFS)

    def refuse_twin(self, path: DeltaPath, names: Names | None = None) -> None:
        """Raise if another delta's name differs only in upper and lower case."""
        if self.store.read_tagged(ref_key(path)) is None:
            (names or self.known_names()).refuse_twin(path)
