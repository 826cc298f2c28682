"""Fetching damaged and missing objects again from another place that has the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltahub.errors import DeltaHubError
from deltahub.files import scratch
from deltahub.registry.registry import Registry
from deltahub.registry.verify import MANIFEST_FILE, Damage, damages, versions
from deltahub.stores.base import object_key

Supply = Callable[
    [str, Path], str
]  # copies an object, by its sha256, to a new file, and returns the sha256 of the copy


@dataclass(frozen=True)
class Repaired:
    """What was repaired of one version, and what could not be.

    Attributes:
        reference: ``"namespace/name@v1"``, or ``"namespace/name"`` if its document cannot be read.
        repaired: the place that each file came from, by the file's name.
        damage: what is damaged still, in words; None if nothing is.
    """

    reference: str
    repaired: Mapping[str, str]
    damage: str | None


def repair(
    registry: Registry,
    supplies: Mapping[str, Supply],
    paths: Collection[str] | None = None,
    version: str | None = None,
) -> Iterator[Repaired]:
    """Re-hash deltas as `verify` does, and store what is damaged or missing again.

    Args:
        supplies: where to look for the same bytes, by name, in this order. What they give is checked.

    Raises:
        NotFoundError: a delta or version that was asked for is not there.
        StorageError: the registry is full or not writable.
    """
    intact: set[str] = set()
    for where, digest in versions(registry, paths, version):
        if isinstance(digest, DeltaHubError):  # a document changes, so no other one can stand in for it
            yield Repaired(where, {}, str(digest))
            continue
        repaired: dict[str, str] = {}
        left = damages(registry, digest, intact)
        for damage in left:
            repaired |= _replaced(registry, supplies, damage)
        if MANIFEST_FILE in repaired:  # only now it is known what else there should be
            left = damages(registry, digest, intact)
            for damage in left:
                repaired |= _replaced(registry, supplies, damage)
        remaining = damages(registry, digest, intact) if left else []
        yield Repaired(where, repaired, "; ".join(map(str, remaining)) or None)


def _replaced(registry: Registry, supplies: Mapping[str, Supply], damage: Damage) -> dict[str, str]:
    """The file and the place that its bytes came from; nothing if no place has them."""
    for name, supply in supplies.items():
        with scratch() as folder:
            copy = folder / "object"
            try:
                found = supply(damage.sha256, copy)
            except DeltaHubError:  # it has them not, or cannot be reached
                continue
            if found == damage.sha256:
                registry.store.create({damage.sha256: copy})
                return {damage.file: name}
    return {}


def from_registry(other: Registry) -> Supply:
    """The objects of another registry."""
    return lambda sha256, into: other.store.fetch(object_key(sha256), into)
