"""Deleting a private delta: nothing that was said of it may be read by whoever has its name next."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from deltahub.errors import ConflictError
from deltahub.registry.document import NOBODY, ReferenceDocument
from deltahub.registry.entries import Move
from deltahub.registry.reading import ref_key
from deltahub.registry.registry import Registry
from deltahub.reserve import freeing


def forget(registry: Registry, path: str, time: str) -> None:
    """Delete a delta, and all that its documents say of it but the numbers and digests of its versions.

    A number is never given again, so that whoever remembers a version never gets another one in its place.

    Args:
        path: ``"namespace/name"``.
        time: when it was deleted, ISO 8601 in UTC.
    """
    names: set[str] = set()

    def change(document: ReferenceDocument) -> ReferenceDocument:
        names.update(move.before for move in document.log if move.action == "rename" and move.before)
        return document.forgotten(time)

    freeing(registry.store.spend_reserve, lambda: registry.update(path, change))
    for name in names - {path}:
        _forget_old_name(registry, name, time)


def reuse_name(registry: Registry, path: str, time: str) -> None:
    """Let something new have the name that a delta had before it was renamed: the name does not lead to that delta any more.

    The numbers of the delta's versions are not given again under this name either.

    Args:
        path: ``"namespace/name"``.
        time: ISO 8601 in UTC.

    Raises:
        ConflictError: something has the name already.
    """
    found = registry.store.read_tagged(ref_key(path))
    document = ReferenceDocument.from_bytes(found[0], path) if found else None
    renamed, _ = registry.current(path)
    if found is None or document is None or renamed is None or not document.moved_to:
        raise ConflictError(f"The name {path}", "an old name", "something new")
    free = replace(renamed.forgotten(time), name=path)
    registry.store.swap(ref_key(path), free.to_bytes(), found[1])


def _forget_old_name(registry: Registry, name: str, time: str) -> None:
    """Cut the log of a document that leads to the new name of a delta."""
    found = registry.store.read_tagged(ref_key(name))
    document = ReferenceDocument.from_bytes(found[0], name) if found else None
    if found and document and document.moved_to:
        rename = Move(time, NOBODY, "rename", document.moved_to, name, document.moved_to)
        with contextlib.suppress(ConflictError):  # something new has the name by now, whose log is its own
            registry.store.swap(ref_key(name), replace(document, log=(rename,)).to_bytes(), found[1])
