"""Garbage collection: unreferenced objects are condemned first, and deleted after a grace period.

It collects leftovers of interrupted pushes and objects of removed versions. A condemned object stays readable, and a push of the
same content takes it back. See `gc_state` for why this is safe while pushes run.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

from deltahub.errors import ConflictError, DeltaHubError, IntegrityError, NotFoundError, StorageError
from deltahub.files.atomic import is_full
from deltahub.files.reserve import with_reserve
from deltahub.reference import Digest
from deltahub.registry import stamps
from deltahub.registry.gc_state import PAUSE, RENEWED, STATE, State, read_state, settled, write_state
from deltahub.registry.registry import Registry
from deltahub.registry.uploads import expire, waiting
from deltahub.stores.base import object_key
from deltahub.stores.retry import SwapRetry
from deltahub.stores.threads import map_concurrently

GRACE: Final = timedelta(days=14)
_OBJECTS: Final = "objects/sha256/"
_LOOKS: Final = 15  # attempts to read a missing manifest
_FEW: Final = 1000  # objects whose announcement fits into one piece of the reserve


@dataclass(frozen=True)
class Collected:
    """The result of a collection or of its dry run.

    Attributes:
        freed: sha256 of each deleted object to its size in bytes.
        waiting: sha256 of each object within its grace period to its size in bytes.
        next: when the first waiting object may be deleted, ISO 8601 in UTC; None if none waits.
    """

    freed: dict[str, int]
    waiting: dict[str, int]
    next: str | None


def collect(registry: Registry, grace: timedelta = GRACE, *, dry_run: bool = False) -> Collected:
    """Delete the objects unused for the grace period, and condemn the newly unused ones.

    Args:
        grace: how long an object must have been known to be unused. The first collection that sees it starts its time.
        dry_run: change nothing.

    Raises:
        IntegrityError: a reference document or a manifest is damaged, so its references are unknown. Nothing was deleted.
        ConflictError: another collection took over.
    """
    marker = Marker(registry)
    if not dry_run:
        expire(registry.store, grace)
    freed: dict[str, int] = {}
    since: Mapping[str, str] = {}
    retry = SwapRetry()
    while True:
        state, etag = read_state(registry.store) if dry_run else settled(registry.store, bool)
        plan = _planned(registry, marker, {**since, **state.condemned, **state.sweeping}, grace)
        if dry_run:
            return plan.outcome({sha256: plan.sizes[sha256] for sha256 in plan.due})
        if not plan.due and plan.waits == state.condemned and not state.sweeping:
            return plan.outcome(freed)
        announced = None
        with retry:
            announced = _announce(registry, plan, state.generation + 1, etag)
        if announced is None:
            continue
        gone = _sweep(registry, marker, announced.sweeper, announced.sweeping) if plan.due else set()
        freed |= {sha256: plan.sizes[sha256] for sha256 in sorted(gone)}
        if announced.sweeping == plan.due:
            return plan.outcome(freed)
        since = {**plan.waits, **plan.due}  # the disk had no room to announce these


@dataclass(frozen=True)
class _Plan:
    """The work of a collection.

    Attributes:
        due: sha256 of each object to delete now to the time since when it is unused.
        waits: the same for objects within their grace period.
        sizes: sizes in bytes of all these objects.
        next: as in `Collected`.
    """

    due: Mapping[str, str]
    waits: Mapping[str, str]
    sizes: Mapping[str, int]
    next: str | None

    def outcome(self, freed: dict[str, int]) -> Collected:
        return Collected(freed, {sha256: self.sizes[sha256] for sha256 in self.waits}, self.next)


def _planned(registry: Registry, marker: Marker, recorded: Mapping[str, str], grace: timedelta) -> _Plan:
    """Find the unused objects.

    Args:
        recorded: the time since when an object is unused, for those seen by an earlier collection.
    """
    now = registry.stamp()[0]
    unused = _objects(registry) - marker.used()
    since = {sha256: stamps.counted_from(recorded.get(sha256, now), now, grace) for sha256 in sorted(unused)}
    due = {sha256: start for sha256, start in since.items() if stamps.is_due(start, now, grace)}
    waits = {sha256: start for sha256, start in since.items() if sha256 not in due}
    first = min(map(_time, waits.values())) + grace if waits else None
    until = first.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z") if first else None
    return _Plan(due, waits, marker.sizes(unused), until)


def _announce(registry: Registry, plan: _Plan, generation: int, etag: str | None) -> State:
    """Announce the deletions and record the waiting objects; if the disk is too full, announce a few deletions only."""
    sweeper = uuid.uuid4().hex if plan.due else ""
    announced = State(generation, plan.waits, plan.due, sweeper)
    fits = len(plan.waits) + len(plan.due) <= _FEW
    try:
        _write(registry, announced, etag, spend=fits)
    except StorageError as error:
        if fits or not plan.due or not is_full(error):
            raise
        announced = State(generation, {}, dict(islice(plan.due.items(), _FEW)), sweeper)
        _write(registry, announced, etag)
    return announced


def _sweep(registry: Registry, marker: Marker, sweeper: str, due: Collection[str]) -> set[str]:
    """Delete the announced objects that are still unreferenced, and clear the announcement.

    If a deletion fails, the remaining objects are condemned again.
    """
    gone: set[str] = set()
    try:
        _delete(registry, marker.used(), sweeper, due, gone)
    except Exception:
        with contextlib.suppress(DeltaHubError):  # the first error is the one to raise
            _renewed(registry, sweeper, done=True, left=set(due) - gone)
        raise
    _renewed(registry, sweeper, done=True)
    return gone


def _delete(registry: Registry, kept: set[str], sweeper: str, due: Collection[str], gone: set[str]) -> None:
    mine = _renewed(registry, sweeper)
    limit = time.monotonic() + RENEWED
    for sha256 in sorted(due):
        if time.monotonic() >= limit:
            mine = _renewed(registry, sweeper)
            limit = time.monotonic() + RENEWED
        if sha256 in mine and sha256 not in kept:
            registry.store.delete(object_key(sha256))
            gone.add(sha256)


def _write(registry: Registry, state: State, etag: str | None, *, spend: bool = True) -> None:
    """Swap the state; a swap that succeeded just before the disk was found full counts as success.

    Args:
        spend: whether to spend the disk reserve.
    """
    store = registry.store
    try:
        with_reserve(lambda: spend and store.spend_reserve(), lambda: write_state(store, state, etag))
    except ConflictError:
        if read_state(store)[0] != state:
            raise
        store.settle([STATE])


def _renewed(registry: Registry, sweeper: str, *, done: bool = False, left: Collection[str] = ()) -> Collection[str]:
    """Record that this collection is alive, or done.

    Args:
        left: objects that stay condemned for the next collection.

    Returns:
        The objects that it may still delete: a push may have taken some back.

    Raises:
        ConflictError: another collection took over.
    """
    retry = SwapRetry()
    while True:
        state, etag = read_state(registry.store)
        if state.sweeper != sweeper:
            raise ConflictError(f"The collection of {registry.place}", "only this one", "another one")
        changed = replace(state, generation=state.generation + 1)
        if done:
            back = {sha256: since for sha256, since in state.sweeping.items() if sha256 in left}
            changed = replace(changed, condemned={**state.condemned, **back}, sweeping={}, sweeper="")
        with retry:
            _write(registry, changed, etag)
            return changed.sweeping.keys()


class Marker:
    """Finder of the objects that a registry's documents refer to; manifests never change and are read once.

    Args:
        registry: the registry to read.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._held: dict[Digest, dict[str, int]] = {}  # digest of a version to its objects' sizes in bytes
        self._removed: set[Digest] = set()

    def used(self) -> set[str]:
        """Return the sha256 of every referenced object.

        An object is referenced if it waits for a version, or if a document refers to it, directly or through a manifest.

        Raises:
            IntegrityError: a document or a manifest is damaged.
        """
        referenced = waiting(self._registry.store)  # first: a commit swaps the document, then removes these
        for objects in map_concurrently(self._used_by, self._registry.names(), self._registry.store.at_once):
            referenced |= objects
        return referenced

    def _used_by(self, path: str) -> set[str]:
        """Return the sha256 of every object that one delta refers to.

        A missing manifest is looked for again: its version may have just been removed or added. Old names are followed, so a delta
        renamed after the names were listed is still found.
        """
        for look in range(_LOOKS):
            document, _ = self._registry.current(path)
            if document is None:  # deleted since it was listed
                return set()
            self._removed.update(entry.digest for entry in document.removed.values())
            try:
                return {sha256 for entry in document.versions.values() for sha256 in self._objects(entry.digest)}
            except IntegrityError:
                if look == _LOOKS - 1:
                    raise
            time.sleep(PAUSE)
        raise AssertionError("unreachable")

    def sizes(self, unused: Collection[str]) -> dict[str, int]:
        """Return the sizes of unused objects in bytes, from the manifests of removed versions or else from the store."""
        sizes: dict[str, int] = {}
        for digest in self._removed:
            with contextlib.suppress(DeltaHubError):  # deleted, or never complete
                sizes.update(self._objects(digest))
        return {sha256: sizes[sha256] if sha256 in sizes else _measured(self._registry, sha256) for sha256 in unused}

    def _objects(self, digest: Digest) -> dict[str, int]:
        if digest not in self._held:
            manifest = self._registry.manifest(digest)
            sizes = {digest.hex: len(manifest.to_bytes())}
            self._held[digest] = sizes | {entry.sha256: entry.size for entry in manifest.files}
        return self._held[digest]


def used(registry: Registry) -> set[str]:
    """Return the sha256 of every object that the registry refers to: see `Marker.used`."""
    return Marker(registry).used()


def _objects(registry: Registry) -> set[str]:
    return {key[len(_OBJECTS) :].replace("/", "") for key, _ in registry.store.keys(_OBJECTS)}


def _measured(registry: Registry, sha256: str) -> int:
    try:
        return registry.store.size(object_key(sha256))
    except NotFoundError:  # another collection was faster
        return 0


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
