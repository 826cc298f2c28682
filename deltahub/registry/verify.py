"""Verification of a registry: every byte is read again and compared with the published digest.

Damaged and missing objects can be replaced with the same bytes from another place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deltahub.errors import DeltaHubError, IntegrityError, NotFoundError, Outcome
from deltahub.files.atomic import WHOLE, scratch
from deltahub.reference import Digest
from deltahub.registry import hub_records
from deltahub.registry.gc_state import STATE, read_state
from deltahub.registry.registry import REFS, Registry, ref_key
from deltahub.stores.base import object_key
from deltahub.stores.threads import interruptible

MANIFEST_FILE = "manifest"  # the name of the manifest in a report


@dataclass(frozen=True)
class Damage:
    """One damaged or missing object of a version.

    Attributes:
        file: its name in the checkpoint, or ``"manifest"``.
        sha256: the published digest, 64 hex digits.
        found: the stored content: ``"sha256:..."``, a number of bytes, or ``"nothing"``.
    """

    file: str
    sha256: str
    found: str

    def __str__(self) -> str:
        return f"{self.file} is damaged: expected sha256:{self.sha256}, found {self.found}"


def verify(
    registry: Registry, paths: Collection[str] | None = None, version: str | None = None
) -> Iterator[tuple[str, str | None]]:
    """Re-hash deltas.

    Args:
        paths: the deltas to verify, ``"namespace/name"``; None for all.
        version: the version to verify; None for all.

    Yields:
        ``"namespace/name@v1"`` and a description of all its damage; None if it is intact. A damaged document is reported under
            the name of its delta, or under its own key if it belongs to no delta.

    Raises:
        NotFoundError: a requested delta or version does not exist.
    """
    intact: set[str] = set()
    for reference, digest in versions(registry, paths, version):
        if isinstance(digest, DeltaHubError):
            yield reference, str(digest)
            continue
        try:
            damage = "; ".join(map(str, damages(registry, digest, intact))) or None
        except DeltaHubError as error:
            damage = str(error)
        if damage is None or _still_there(registry, reference):
            yield reference, damage


def _still_there(registry: Registry, reference: str) -> bool:
    """Check whether a version still exists, as it may have been removed while it was read."""
    path, _, version = reference.partition("@")
    try:
        document = registry.stored(path)
    except DeltaHubError:
        return True
    return document is not None and version in document.versions


def versions(
    registry: Registry, paths: Collection[str] | None, version: str | None
) -> Iterator[tuple[str, Outcome[Digest]]]:
    """Iterate over the requested versions, each with its digest; an unreadable document is yielded with its error."""
    names = registry.names() if paths is None else []
    for path in names if paths is None else paths:
        try:
            document = registry.document(path) if paths is not None else registry.stored(path)
        except DeltaHubError as error:
            if paths is not None and isinstance(error, NotFoundError):
                raise
            yield path, error
            continue
        if document is None:  # deleted since it was listed
            continue
        if document.moved_to:  # an old name: its versions are read under the new one, which may be newer than the list
            if document.moved_to not in names and registry.store.read_tagged(ref_key(document.moved_to)):
                names.append(document.moved_to)
            elif document.moved_to not in names:
                yield path, NotFoundError(f"{document.moved_to}, to which {path} leads,", (registry.place,))
            continue
        for name in [document.resolve(version)] if version else list(document.versions):
            yield f"{document.name}@{name}", document.versions[name].digest
    if paths is None:
        yield from _unlisted(registry, set(names))
        try:
            read_state(registry.store)
        except DeltaHubError as error:
            yield STATE, error
        yield from hub_records.damages(registry.store)


def _unlisted(registry: Registry, names: Collection[str]) -> Iterator[tuple[str, DeltaHubError]]:
    """Iterate over non-files in place of a reference document, such as a folder or a broken link, each with its error."""
    for namespace in registry.store.children(REFS):
        for child in registry.store.children(f"{REFS}{namespace}") if namespace.endswith("/") else ():
            path = f"{namespace}{child.removesuffix('/').removesuffix('.json')}"
            if child.removesuffix("/").endswith(".json") and path not in names:
                try:
                    gone = registry.stored(path) is None
                except DeltaHubError as error:
                    yield path, error
                    continue
                if gone:
                    remedy = f"Restore {ref_key(path)} in its registry from a copy, or move it away and push the delta again."
                    yield (
                        path,
                        IntegrityError(f"The reference document of {path}", "a file", "a link to nothing", remedy),
                    )


def damages(registry: Registry, digest: Digest, intact: set[str]) -> list[Damage]:
    """Return the damaged objects of a version.

    Args:
        digest: the digest of its manifest.
        intact: the sha256 of objects already verified, as deltas share objects; newly verified ones are added.

    Raises:
        CheckpointError: its manifest is whole, but written by a later deltahub.
        StorageError: the registry cannot be read.
    """
    digits = digest.hex
    files: dict[str, tuple[str, int | None]] = {digits: (MANIFEST_FILE, None)}
    try:
        files.update((entry.sha256, (entry.path, entry.size)) for entry in registry.manifest(digest).files)
    except IntegrityError:
        pass
    else:
        intact.add(digits)
    damaged = []
    for sha256, (file, size) in files.items():
        if sha256 not in intact:
            content = _seen(registry, sha256, size)
            if content == Digest.of_hex(sha256):
                intact.add(sha256)
            else:
                damaged.append(Damage(file, sha256, content))
    return damaged


def _seen(registry: Registry, sha256: str, size: int | None) -> str:
    """Return the digest of a stored object, read in chunks, as it may not fit in memory.

    Args:
        size: its expected size in bytes; None for a manifest, which is always read as a whole.

    Returns:
        ``"sha256:..."``, its size if it is too large, or ``"nothing"``.
    """
    key = object_key(sha256)

    def hashed() -> str:
        digest = hashlib.sha256()
        for chunk in registry.store.chunks(key):
            digest.update(chunk)
        return Digest.of_hex(digest.hexdigest())

    try:
        stored_size = registry.store.size(key)
        if stored_size > max(size or 0, WHOLE):  # damaged, and perhaps a sparse file that takes hours to read
            return f"{stored_size} bytes"
        return interruptible(hashed)
    except NotFoundError:
        return "nothing"
    except IntegrityError as error:
        return error.found


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
    for reference, digest in versions(registry, paths, version):
        if isinstance(digest, DeltaHubError):  # a document is mutable, so no copy can replace it
            yield Repaired(reference, {}, str(digest))
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
        yield Repaired(reference, repaired, "; ".join(map(str, remaining)) or None)


def _replaced(registry: Registry, supplies: Mapping[str, Supply], damage: Damage) -> dict[str, str]:
    """Replace a damaged object; return the file and the place that its bytes came from, or nothing if no place has them."""
    for name, supply in supplies.items():
        with scratch() as folder:
            copy = folder / "object"
            try:
                copied = supply(damage.sha256, copy)
            except DeltaHubError:  # it lacks the bytes, or is out of reach
                continue
            if copied == damage.sha256:
                registry.store.create({damage.sha256: copy})
                return {damage.file: name}
    return {}


def from_registry(other: Registry) -> Supply:
    """Return a supply of the objects of another registry."""
    return lambda sha256, into: other.store.fetch(object_key(sha256), into)
