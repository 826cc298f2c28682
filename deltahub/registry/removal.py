"""Removal of a version, which leaves a tombstone."""

from __future__ import annotations

from collections.abc import Collection

from deltahub.errors import InUseError
from deltahub.files.reserve import freeing
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.registry import Registry


def remove(
    registry: Registry, path: str, version: str | None, *, message: str = "", needed: Collection[str] = ()
) -> tuple[ReferenceDocument, str]:
    """Remove a version; its number is never reused, and its files go with the next garbage collection but one.

    Args:
        path: ``"namespace/name"``.
        version: the version to remove; None for the newest.
        message: the reason, shown to those who ask for the version later.
        needed: digests that must stay, such as those of a lock file.

    Returns:
        The new document and the removed version.

    Raises:
        InUseError: an alias or a branch points to it, or its digest is needed. Nothing was changed.
        RemovedError: it was removed already.
    """
    name, full = "", False

    def spend() -> bool:
        nonlocal full
        full = True
        return registry.store.spend_reserve()

    def change(document: ReferenceDocument) -> ReferenceDocument:
        nonlocal name
        name = name or document.resolve(version)
        if full and name in document.removed:  # the first try swapped it before the disk was found full
            return document
        document.resolve(name)  # also after a lost race that may have removed it
        what = f"{document.name}@{name}"
        if aliases := document.aliases_of(name):
            remedy = f"Move the alias first, or remove it: deltahub alias {document.name} {aliases[0]} --remove"
            raise InUseError(what, f"the alias {', '.join(aliases)} points to it", remedy)
        if branches := [branch for branch, target in document.branches.items() if target == name]:
            raise InUseError(what, f"the branch {branches[0]} ends at it", "Delete the branch first, or add to it.")
        if document.versions[name].digest in needed:
            raise InUseError(what, "the lock file pins it", "Lock another version first: deltahub lock")
        return document.without_version(name, *registry.stamp(), message)

    return freeing(spend, lambda: registry.update(path, change)), name
