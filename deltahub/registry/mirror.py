"""Copies of deltas from one registry to another: all versions, aliases, tags and history.

Objects go first, the document of each delta last, as in a push. Objects already in the target are not fetched again, so an
interrupted copy resumes. Every byte is verified on the way.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import ConflictError
from deltahub.files.atomic import scratch
from deltahub.reference import DeltaPath
from deltahub.registry.case_collisions import Names, refuse_twin
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move
from deltahub.registry.following import beginning, follow, known_as, made_anew
from deltahub.registry.gc_state import spare
from deltahub.registry.promotion.guard import guard, guard_rename
from deltahub.registry.reconcile import Vouched, merged
from deltahub.registry.registry import Registry, ref_key
from deltahub.registry.signatures import copy_signatures
from deltahub.stores.base import Progress, Source, object_key
from deltahub.stores.threads import map_concurrently

_OBJECTS = "objects/sha256/"
_AT_ONCE = 8  # deltas copied in parallel over a network


@dataclass(frozen=True)
class Copied:
    """The result of copying one delta.

    Attributes:
        name: the delta's name with its namespace.
        versions: the versions new to the target.
        changed: whether the target changed.
        size: bytes transferred.
    """

    name: DeltaPath
    versions: tuple[str, ...]
    changed: bool
    size: int


def copy(
    source: Registry,
    target: Registry,
    paths: Collection[str] | None = None,
    progress: Progress | None = None,
    vouched: Vouched | None = None,
) -> Iterator[Copied]:
    """Copy deltas one by one; over a network several in parallel.

    Args:
        paths: which to copy, ``"namespace/name"``; None for all, including redirects.
        vouched: refuses an unsigned version if the source requires signatures; None if it requires none.

    Raises:
        SignatureError: a version new to the target is refused. Nothing of that delta is copied.
        NotFoundError: the source has no such delta.
        ConflictError: a version has other content in the target.
        IntegrityError: the source is damaged. Deltas copied before stay.
        ReferenceSyntaxError: a name differs from one in the target in upper and lower case only.
    """
    paths = source.names() if paths is None else [source.document(path).name for path in paths]
    waiting = source.store.at_once > 1 or target.store.at_once > 1  # network latency, during which others can be copied
    job = _Copying(source, target, progress, vouched)
    for done in map_concurrently(job.copy, paths, _AT_ONCE if waiting else 1):
        if done is not None:
            yield done
    yield from job.rest()


class _Copying:
    """The shared state of many copies."""

    def __init__(self, source: Registry, target: Registry, progress: Progress | None, vouched: Vouched | None) -> None:
        self._source, self._target, self._progress, self._vouched = source, target, progress, vouched
        self._known = Names(target)
        self._names: list[str] = []  # redirects to other deltas
        self._anew: list[str] = []  # reused names: the former delta must have its new name in the target first
        self._copied: set[tuple[str | None, Move]] = set()  # see `beginning`
        self._present = functools.cache(lambda: _present(target))  # the target's objects, listed only when needed

    def copy(self, path: str) -> Copied | None:
        """Copy a delta; return None for a redirect or a deleted delta."""
        document, _ = self._source.current(path)
        if document is None:  # deleted since it was listed
            return None
        if document.name != path:
            self._names.append(path)
            return None
        if made_anew(document):
            self._anew.append(path)
            return None
        return self._copy(replace(document, moving=None))

    def rest(self) -> Iterator[Copied]:
        """Copy deltas with reused names, then redirects: the target of a redirect must exist first."""
        for path in self._anew:
            document, _ = self._source.current(path)
            if document and document.name == path:
                yield self._copy(replace(document, moving=None))
        left: list[ReferenceDocument] = []
        for path in self._names:
            document, _ = self._source.current(path)
            if document and beginning(document) not in self._copied:  # renamed since it was listed
                yield self._copy(replace(document, moving=None))
            name = self._source.stored(path)
            if name and name.moved_to:
                left.append(name)
                self._names += [name.moved_to] if name.moved_to not in self._names else []
        while ready := [name for name in left if name.moved_to and self._target.current(name.moved_to)[0]]:
            for name in ready:
                mine = self._target.stored(name.name) or ReferenceDocument(name.name)
                yield Copied(name.name, (), _copy_name(self._target, mine, name), 0)
            left = [name for name in left if name not in ready]

    def _copy(self, document: ReferenceDocument) -> Copied:
        source, target, path = self._source, self._target, document.name
        refuse_twin(target, path, self._known)
        mine = known_as(target, document) or ReferenceDocument(path)
        if made_anew(document) and mine.log and beginning(mine) != beginning(document):
            raise ConflictError(f"The delta {path}", "the one that was made anew under an old name", "the old one")
        merged(mine, document, *target.stamp())  # a conflict must be found before anything is transferred
        if self._vouched:
            for version in document.versions.keys() - mine.versions.keys():
                self._vouched(document, version)
        objects = _objects(source, mine, document)
        size = _copy_objects(source, target, document, objects, self._present() if objects else set(), self._progress)
        changed = known_as(target, document) != mine
        copy_signatures(source, target, [entry.digest for entry in document.versions.values()])
        self._copied.add(beginning(document))
        return Copied(path, tuple(name for name in document.versions if name not in mine.versions), changed, size)


def _free_name(target: Registry, document: ReferenceDocument) -> None:
    """Replace a redirect in the target, if the source reused the name for a new delta."""
    mine = target.stored(document.name)
    if made_anew(document) and mine and mine.moved_to and known_as(target, document) is None:
        guard(target, target.actor, mine, document)
        stored = target.store.read_tagged(ref_key(document.name))
        target.swap_document(document, stored[1] if stored else None)


def _copy_name(target: Registry, mine: ReferenceDocument, document: ReferenceDocument) -> bool:
    """Copy a redirect; it never replaces a delta with versions here."""
    if mine.moved_to == document.moved_to:
        target.settle([mine])
        return False
    if mine.versions or mine.removed or mine.moved_to:
        raise ConflictError(f"The name {mine.name}", mine.moved_to or "a delta", document.moved_to or "a delta")
    leads_to = target.current(document.moved_to or "")[0]
    if leads_to and mine.name not in leads_to.names:  # else the rules for this name held at each move of its aliases
        guard_rename(target, target.actor, leads_to, mine.name)
    target.swap_document(document, None)
    return True


def _objects(source: Registry, mine: ReferenceDocument, document: ReferenceDocument) -> dict[str, Source | FileEntry]:
    """Return the objects of the missing versions by sha256: manifests as bytes, files as entries."""
    objects: dict[str, Source | FileEntry] = {}
    for name, entry in document.versions.items():
        if name not in mine.versions and name not in mine.removed:
            manifest: Manifest = source.manifest(entry.digest)
            digits = entry.digest.hex
            objects.update((file.sha256, file) for file in manifest.files)
            objects[digits] = source.store.read(object_key(digits))
    return objects


def _copy_objects(
    source: Registry,
    target: Registry,
    document: ReferenceDocument,
    objects: dict[str, Source | FileEntry],
    there: set[str],
    progress: Progress | None,
) -> int:
    """Copy missing objects, then the document, safe from a garbage collection that runs meanwhile."""
    size = 0
    generation = spare(target.store, objects)
    while True:
        target.store.settle(object_key(sha256) for sha256 in objects.keys() & there)
        size += _fetch(source, target, {key: value for key, value in objects.items() if key not in there}, progress)
        there.update(objects)
        if (now := spare(target.store, objects)) == generation:
            name = follow(target, document)
            _free_name(target, document)
            target.update(name, lambda mine: merged(mine, document, *target.stamp()), may_create=True)
            now = spare(target.store, objects)
        if now == generation:
            return size
        there.clear()
        there.update(_present(target))
        generation = now


def _fetch(
    source: Registry, target: Registry, missing: dict[str, Source | FileEntry], progress: Progress | None
) -> int:
    if not missing:
        return 0
    with scratch() as folder:
        sources: dict[str, Source] = {}
        for sha256, content in missing.items():
            if isinstance(content, FileEntry):
                source.fetch(content, folder / sha256, progress)
                sources[sha256] = folder / sha256
            else:
                sources[sha256] = content
        target.store.create(sources)
        return sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in sources.values())


def _present(registry: Registry) -> set[str]:
    return {key[len(_OBJECTS) :].replace("/", "") for key, _ in registry.store.keys(_OBJECTS)}
