"""Edits of a delta: aliases, tags, undo of the last alias move, and removal of a version.

A change that loses a race is applied again to the winner's document, unless the winner moved the same alias.

A removed version leaves a tombstone.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from typing import Final

from deltahub.errors import ConflictError, InUseError, NotFoundError
from deltahub.files.reserve import with_reserve
from deltahub.reference import DeltaPath, check_alias, check_tag
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Version
from deltahub.registry.registry import Registry


def remove(
    registry: Registry, path: DeltaPath, version: str | None, *, message: str = "", needed: Collection[str] = ()
) -> tuple[ReferenceDocument, str]:
    """Remove a version; its number is never reused, and its files are deleted by the second garbage collection from now.

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
        subject = f"{document.name}@{name}"
        if aliases := document.aliases_of(name):
            remedy = f"Move the alias first, or remove it: deltahub alias {document.name} {aliases[0]} --remove"
            raise InUseError(subject, f"the alias {', '.join(aliases)} points to it", remedy)
        if branches := [branch for branch, target in document.branches.items() if target == name]:
            raise InUseError(
                subject, f"the branch {branches[0]} points to it", "Delete the branch first, or add to it."
            )
        if document.versions[name].digest in needed:
            raise InUseError(subject, "the lock file pins it", "Lock another version first: deltahub lock")
        return document.without_version(name, *registry.stamp(), message)

    return with_reserve(spend, lambda: registry.update(path, change)), name


class Anything(Enum):
    """The default of `expect`: any value is accepted."""

    ANYTHING = "anything"


ANYTHING: Final = Anything.ANYTHING


def set_alias(
    registry: Registry,
    path: DeltaPath,
    alias: str,
    version: str | None,
    *,
    expect: str | Anything | None = ANYTHING,
    reason: str = "",
) -> ReferenceDocument:
    """Point an alias to a version, or remove it with None.

    Args:
        expect: the version that it must point to now, None if it must not exist; by default any.
        reason: why, for the log.

    Raises:
        ConflictError: it points elsewhere, or was moved concurrently. Nothing was changed.
        StorageError: the store is full or not writable. Only removing an alias spends the reserve, so that its version can be removed.
    """
    if version is not None:
        check_alias(alias)
    target: str | None = None
    full = False

    def spend() -> bool:
        nonlocal full
        full = True
        return version is None and registry.store.spend_reserve()

    def change(document: ReferenceDocument) -> ReferenceDocument:
        nonlocal expect, target
        now = document.aliases.get(alias)
        if full and now is None:  # it was swapped already when the disk was found to be full
            return document
        if not isinstance(expect, Anything) and now != document.expected(expect):
            raise ConflictError(f"The alias {document.name}@{alias}", expect, now)
        if version is None and now is None:
            aliases = f"aliases {', '.join(document.aliases) or 'none'}"
            raise NotFoundError(f"The alias {document.name}@{alias}", (aliases,))
        if version is not None and alias in document.branches:
            subject = f"The alias {document.name}@{alias}"
            raise InUseError(subject, "a branch has this name", "Delete the branch first, or choose another name.")
        if version is not None and target is None:  # "latest" is resolved once, at the first attempt
            target = document.resolve(version)
        expect = now
        return document.with_alias(
            alias, target and document.resolve(target), *registry.stamp(), reason=stamps.text(reason)
        )

    return with_reserve(spend, lambda: registry.update(path, change))


def set_tags(
    registry: Registry, path: DeltaPath, version: str | None, add: Collection[str], remove: Collection[str]
) -> Version:
    """Add and remove tags of a version, and return it: see `tagged`."""
    document, name = tagged(registry, path, version, add, remove)
    return document.versions[name]


def tagged(
    registry: Registry, path: DeltaPath, version: str | None, add: Collection[str], remove: Collection[str]
) -> tuple[ReferenceDocument, str]:
    """Add and remove tags of a version.

    Returns:
        The new document and the tagged version.

    Raises:
        NotFoundError: a tag to remove does not exist.
    """
    add = [*map(check_tag, add)]
    name = ""

    def change(document: ReferenceDocument) -> ReferenceDocument:
        nonlocal name
        name = document.resolve(name or version)
        tags = document.versions[name].tags
        if missing := [tag for tag in remove if tag not in tags]:
            subject = f"The tag {missing[0]!r} of {document.name}@{name}"
            raise NotFoundError(subject, (f"tags {', '.join(tags) or 'none'}",))
        return document.with_tags(name, add, remove, *registry.stamp())

    return registry.update(path, change), name


def undo(
    registry: Registry, path: DeltaPath, alias: str | None = None, *, reason: str = ""
) -> tuple[ReferenceDocument, Move]:
    """Undo the last alias move; a second call undoes the one before.

    Args:
        alias: the alias whose last move is undone; None for whichever moved last.
        reason: why, for the log.

    Returns:
        The new document and the undone move.

    Raises:
        NotFoundError: no move is left.
        RemovedError: the version that the alias pointed to was removed.
        ConflictError: an alias was moved concurrently. Nothing was changed.
    """
    taken: Move | None = None

    def change(document: ReferenceDocument) -> ReferenceDocument:
        nonlocal taken
        move = document.last_alias_move(alias)
        if taken is not None and move != taken:
            raise ConflictError(f"The last alias move of {document.name}", _said(taken), _said(move) if move else None)
        if move is None:
            subject = f"the alias {document.name}@{alias}" if alias else f"an alias of {document.name}"
            raise NotFoundError(f"A move of {subject}", ("its log",))
        if move.before is not None:
            document.resolve(move.before)
        taken = move
        return document.with_undone(move, *registry.stamp(), reason=stamps.text(reason))

    changed = registry.update(path, change)
    assert taken is not None
    return changed, taken


def _said(move: Move) -> str:
    return f"{move.what}: {move.before or 'nothing'} -> {move.after or 'nothing'}"
