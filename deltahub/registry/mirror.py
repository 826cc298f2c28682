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
        theirs, _ = self._source.current(path)
        if theirs is None:  # deleted since it was listed
            return None
        if theirs.name != path:
            self._names.append(path)
            return None
        if made_anew(theirs):
            self._anew.append(path)
            return None
        return self._copy(replace(theirs, moving=None))

    def rest(self) -> Iterator[Copied]:
        """Copy deltas with reused names, then redirects: the target of a redirect must exist first."""
        for path in self._anew:
            theirs, _ = self._source.current(path)
            if theirs and theirs.name == path:
                yield self._copy(replace(theirs, moving=None))
        left: list[ReferenceDocument] = []
        for path in self._names:
            theirs, _ = self._source.current(path)
            if theirs and beginning(theirs) not in self._copied:  # renamed since it was listed
                yield self._copy(replace(theirs, moving=None))
            name = self._source.stored(path)
            if name and name.moved_to:
                left.append(name)
                self._names += [name.moved_to] if name.moved_to not in self._names else []
        while ready := [name for name in left if name.moved_to and self._target.current(name.moved_to)[0]]:
            for name in ready:
                mine = self._target.stored(name.name) or ReferenceDocument(name.name)
                yield Copied(name.name, (), _copy_name(self._target, mine, name), 0)
            left = [name for name in left if name not in ready]

    def _copy(self, theirs: ReferenceDocument) -> Copied:
        source, target, path = self._source, self._target, theirs.name
        refuse_twin(target, path, self._known)
        mine = known_as(target, theirs) or ReferenceDocument(path)
        if made_anew(theirs) and mine.log and beginning(mine) != beginning(theirs):
            raise ConflictError(f"The delta {path}", "the one that was made anew under an old name", "the old one")
        merged(mine, theirs, *target.stamp())  # a conflict must be found before anything is transferred
        if self._vouched:
            for version in theirs.versions.keys() - mine.versions.keys():
                self._vouched(theirs, version)
        wanted = _objects(source, mine, theirs)
        size = _copy_objects(source, target, theirs, wanted, self._present() if wanted else set(), self._progress)
        changed = known_as(target, theirs) != mine
        copy_signatures(source, target, [entry.digest for entry in theirs.versions.values()])
        self._copied.add(beginning(theirs))
        return Copied(path, tuple(name for name in theirs.versions if name not in mine.versions), changed, size)


def _free_name(target: Registry, theirs: ReferenceDocument) -> None:
    """Replace a redirect in the target, if the source reused the name for a new delta."""
    mine = target.stored(theirs.name)
    if made_anew(theirs) and mine and mine.moved_to and known_as(target, theirs) is None:
        found = target.store.read_tagged(ref_key(theirs.name))
        target.store.swap(ref_key(theirs.name), theirs.to_bytes(), found[1] if found else None)


def _copy_name(target: Registry, mine: ReferenceDocument, theirs: ReferenceDocument) -> bool:
    """Copy a redirect; it never replaces a delta with versions here."""
    if mine.moved_to == theirs.moved_to:
        target.store.settle([ref_key(mine.name)])
        return False
    if mine.versions or mine.removed or mine.moved_to:
        raise ConflictError(f"The name {mine.name}", mine.moved_to or "a delta", theirs.moved_to or "a delta")
    target.store.swap(ref_key(mine.name), theirs.to_bytes(), None)
    return True


def _objects(source: Registry, mine: ReferenceDocument, theirs: ReferenceDocument) -> dict[str, Source | FileEntry]:
    """Return the objects of the missing versions by sha256: manifests as bytes, files as entries."""
    found: dict[str, Source | FileEntry] = {}
    for name, entry in theirs.versions.items():
        if name not in mine.versions and name not in mine.removed:
            manifest: Manifest = source.manifest(entry.digest)
            digits = entry.digest.hex
            found.update((file.sha256, file) for file in manifest.files)
            found[digits] = source.store.read(object_key(digits))
    return found


def _copy_objects(
    source: Registry,
    target: Registry,
    theirs: ReferenceDocument,
    wanted: dict[str, Source | FileEntry],
    there: set[str],
    progress: Progress | None,
) -> int:
    """Copy missing objects, then the document, safe from a garbage collection that runs meanwhile."""
    size = 0
    generation = spare(target.store, wanted)
    while True:
        target.store.settle(object_key(sha256) for sha256 in wanted.keys() & there)
        size += _fetch(source, target, {key: value for key, value in wanted.items() if key not in there}, progress)
        there.update(wanted)
        if (now := spare(target.store, wanted)) == generation:
            name = follow(target, theirs)
            _free_name(target, theirs)
            target.update(name, lambda mine: merged(mine, theirs, *target.stamp()), may_create=True)
            now = spare(target.store, wanted)
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
        for sha256, wanted in missing.items():
            if isinstance(wanted, FileEntry):
                source.fetch(wanted, folder / sha256, progress)
                sources[sha256] = folder / sha256
            else:
                sources[sha256] = wanted
        target.store.create(sources)
        return sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in sources.values())


def _present(registry: Registry) -> set[str]:
    return {key[len(_OBJECTS) :].replace("/", "") for key, _ in registry.store.keys(_OBJECTS)}
