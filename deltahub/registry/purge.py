"""Deletion of a private delta, so that the next owner of its name can read nothing about it."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from deltahub.errors import ConflictError
from deltahub.files.reserve import with_reserve
from deltahub.reference import DeltaPath
from deltahub.registry.document import NOBODY, ReferenceDocument
from deltahub.registry.entries import Move
from deltahub.registry.promotion.guard import guard_rename
from deltahub.registry.registry import Registry, ref_key


def forget(registry: Registry, path: DeltaPath, time: str) -> None:
    """Delete a delta and all details in its documents except the numbers and digests of its versions.

    A number is never reused, so that a remembered version never means another one.

    Args:
        path: ``"namespace/name"``.
        time: when it was deleted, ISO 8601 in UTC.
    """
    names: set[str] = set()

    def change(document: ReferenceDocument) -> ReferenceDocument:
        names.update(move.before for move in document.log if move.action == "rename" and move.before)
        return document.forgotten(time)

    with_reserve(registry.store.spend_reserve, lambda: registry.update(path, change))
    for name in names - {path}:
        _forget_old_name(registry, name, time)


def reuse_name(registry: Registry, path: DeltaPath, time: str) -> None:
    """Free the former name of a renamed delta for something new: the name does not lead to that delta any more.

    The numbers of the delta's versions are not reused under this name either.

    Args:
        path: ``"namespace/name"``.
        time: ISO 8601 in UTC.

    Raises:
        ConflictError: the name is not an old name, or is already in use.
        RefusedMoveError: the delta has a protected alias, which the old name leads to, and this one is not an admin.
    """
    stored = registry.store.read_tagged(ref_key(path))
    document = ReferenceDocument.from_bytes(stored[0], path) if stored else None
    renamed, _ = registry.current(path)
    if stored is None or document is None or renamed is None or not document.moved_to:
        raise ConflictError(f"The name {path}", "an old name", "something new")
    guard_rename(registry, registry.actor, renamed, path)
    free = replace(renamed.forgotten(time), name=path)
    registry.swap_document(free, stored[1])


def _forget_old_name(registry: Registry, name: str, time: str) -> None:
    """Cut the log of a document that redirects to the delta's new name."""
    stored = registry.store.read_tagged(ref_key(name))
    document = ReferenceDocument.from_bytes(stored[0], name) if stored else None
    if stored and document and document.moved_to:
        rename = Move(time, NOBODY, "rename", document.moved_to, name, document.moved_to)
        with contextlib.suppress(ConflictError):  # something new with its own log has the name by now
            registry.swap_document(replace(document, log=(rename,)), stored[1])
