"""Renaming a delta: everything moves to the new name, and the old one says where it went.

The new document is written first, so that whatever is interrupted leaves the delta under its old name, and repeating goes on
from there.
"""

from __future__ import annotations

from typing import Final

from deltahub.errors import ConflictError, InUseError, NotFoundError
from deltahub.reference import Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.halfway import came_from, is_copy
from deltahub.registry.registry import Registry, ref_key

_ATTEMPTS: Final = 20


def rename(registry: Registry, old: Reference, new: Reference, author: str | None = None) -> ReferenceDocument:
    """Give a delta another name; the old name leads to it from then on.

    Args:
        author: who does so; by default whoever runs this.

    Returns:
        The document under the new name.

    Raises:
        NotFoundError: there is no such delta.
        InUseError: another delta has the new name. Nothing was changed.
        ReferenceSyntaxError: it differs from another name in upper and lower case only.
        ConflictError: others kept changing the delta. It has its old name still.
    """
    registry.refuse_twin(new.path)
    for attempt in range(_ATTEMPTS):
        document, etag = registry.read(old.path)
        if document is None:
            raise NotFoundError(old.path, (registry.place,))
        if document.name == new.path:
            registry.store.settle([ref_key(old.path), ref_key(new.path)])
            return document
        time, user = registry.stamp()
        moved, left = document.renamed(new.path, time, author or user)
        try:
            free = _free(registry, new.path, document)
            registry.store.swap(ref_key(new.path), moved.to_bytes(), free)
            registry.store.swap(ref_key(document.name), left.to_bytes(), etag)
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        except InUseError:
            if registry.read(old.path)[1] == etag:
                raise
            continue  # somebody else renamed it
        return moved
    raise AssertionError("unreachable")


def _free(registry: Registry, name: str, document: ReferenceDocument) -> str | None:
    """The etag of what may be replaced under the new name: nothing, a way back, or what a killed rename left."""
    found = registry.store.read_tagged(ref_key(name))
    if found is None:
        return None
    there = ReferenceDocument.from_bytes(found[0], name)
    unfinished = came_from(there) == document.name and is_copy(there, document)
    if there.moved_to == document.name or unfinished:
        return found[1]
    user = f"{name} is {'the old name of ' + there.moved_to if there.moved_to else 'another delta'}"
    raise InUseError(document.name, user, "Choose a name that is free.")
