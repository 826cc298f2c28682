"""Renaming a delta: everything moves to the new name, and the old one says where it went.

The old document says first that the delta is moving, and from then on whoever wants to change it does the rest of the move first.
Whatever is interrupted leaves the delta under its old name until then. What a hub knows of it goes ahead, and stays behind too: there is
no moment, and no name, at which everybody may see what is private.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from deltahub.errors import ConflictError, InUseError, NotFoundError
from deltahub.reference import Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Moving
from deltahub.registry.hub_documents import REPOSITORIES, repository_key
from deltahub.registry.registry import Registry, ref_key

_ATTEMPTS: Final = 20  # that are lost to others


def rename(
    registry: Registry, old: Reference, new: Reference, stamp: tuple[str, str] | None = None
) -> ReferenceDocument:
    """Give a delta another name; the old name leads to it from then on.

    Args:
        stamp: when and by whom it is done; by default now, by whoever runs this.

    Returns:
        The document under the new name.

    Raises:
        NotFoundError: there is no such delta.
        InUseError: another delta has the new name, or another repository of a hub. Nothing was changed.
        ReferenceSyntaxError: it differs from another name in upper and lower case only.
        ConflictError: others kept changing the delta. It has its old name still.
    """
    registry.refuse_twin(new.path)
    decided: tuple[int, Move] | None = None  # where in the log it stands if it was done, and the entry
    lost = 0
    while True:
        document, etag = registry.settled(old.path)
        if document is None:
            raise NotFoundError(old.path, (registry.place,))
        done = decided and document.log[decided[0] : decided[0] + 1] == decided[1:]
        if done or document.name == new.path:  # it may have gone further since
            registry.store.settle([ref_key(old.path), ref_key(new.path)])
            return document
        try:
            moving = Moving(new.path, _free(registry, new.path, document), *(stamp or registry.stamp()))
            _carry_record(registry, document.name, new.path, back=moving.over is not None)
            registry.store.swap(ref_key(document.name), replace(document, moving=moving).to_bytes(), etag)
        except ConflictError:
            lost += 1
            if lost == _ATTEMPTS:
                raise
            continue
        except InUseError:
            if registry.settled(old.path)[1] == etag:
                raise
            continue  # somebody else renamed it
        decided = len(document.log), replace(document, moving=moving).renamed()[0].log[-1]


def _carry_record(registry: Registry, old: str, new: str, *, back: bool) -> None:
    """Write what a hub knows of a repository under its new name as well.

    Args:
        back: it had that name before, so that what is known there is of itself.
    """
    known = REPOSITORIES.read(registry.store, repository_key(old))
    if known is None:
        return
    there = REPOSITORIES.read(registry.store, repository_key(new))
    if there and there[0] == known[0]:
        return
    if there and not back:
        raise InUseError(old, f"{new} is another repository of a hub", "Choose a name that is free.")
    REPOSITORIES.write(registry.store, repository_key(new), known[0], there[1] if there else None)


def _free(registry: Registry, name: str, document: ReferenceDocument) -> str | None:
    """The etag of what may be replaced under the new name: nothing, or a way back."""
    found = registry.store.read_tagged(ref_key(name))
    if found is None:
        return None
    there = ReferenceDocument.from_bytes(found[0], name)
    if there.moved_to == document.name:
        return found[1]
    user = f"{name} is {'the old name of ' + there.moved_to if there.moved_to else 'another delta'}"
    raise InUseError(document.name, user, "Choose a name that is free.")
