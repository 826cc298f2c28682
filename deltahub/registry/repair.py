"""Repair of damaged and missing objects with the same bytes from another place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltahub.errors import DeltaHubError
from deltahub.files.atomic import scratch
from deltahub.registry.registry import Registry
from deltahub.registry.verify import MANIFEST_FILE, Damage, damages, versions
from deltahub.stores.base import object_key

Supply = Callable[[str, Path], str]  # copies an object, by its sha256, to a new file and returns the sha256 of the copy


@dataclass(frozen=True)
class Repaired:
    """The result of repairing one version.

    Attributes:
        reference: ``"namespace/name@v1"``, or ``"namespace/name"`` if its document cannot be read.
        repaired: file name to the place that its bytes came from.
        damage: a description of the remaining damage; None if there is none.
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
    """Re-hash deltas as `verify` does, and restore damaged or missing objects.

    Args:
        supplies: places to look for the same bytes, by name, in this order. Their bytes are verified.

    Raises:
        NotFoundError: a requested delta or version does not exist.
        StorageError: the registry is full or not writable.
    """
    intact: set[str] = set()
    for where, digest in versions(registry, paths, version):
        if isinstance(digest, DeltaHubError):  # a document is mutable, so no copy can replace it
            yield Repaired(where, {}, str(digest))
            continue
        repaired: dict[str, str] = {}
        left = damages(registry, digest, intact)
        for damage in left:
            repaired |= _replaced(registry, supplies, damage)
        if MANIFEST_FILE in repaired:  # only the manifest lists the other files
            left = damages(registry, digest, intact)
            for damage in left:
                repaired |= _replaced(registry, supplies, damage)
        remaining = damages(registry, digest, intact) if left else []
        yield Repaired(where, repaired, "; ".join(map(str, remaining)) or None)


def _replaced(registry: Registry, supplies: Mapping[str, Supply], damage: Damage) -> dict[str, str]:
    """Replace a damaged object; return the file and the place that its bytes came from, or nothing if no place has them."""
    for name, supply in supplies.items():
        with scratch() as folder:
            copy = folder / "object"
            try:
                found = supply(damage.sha256, copy)
            except DeltaHubError:  # it lacks the bytes, or is out of reach
                continue
            if found == damage.sha256:
                registry.store.create({damage.sha256: copy})
                return {damage.file: name}
    return {}


def from_registry(other: Registry) -> Supply:
    """Return a supply of the objects of another registry."""
    return lambda sha256, into: other.store.fetch(object_key(sha256), into)
