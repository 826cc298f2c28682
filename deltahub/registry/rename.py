"""Renaming of a delta: everything moves to the new name, and the old one becomes a redirect.

First the old document records the move; from then on, every change to the delta finishes the move first. An interruption before
that leaves the delta under its old name. A hub's record of the repository is copied ahead to the new name and also stays at the old
one: a private delta is never public, at any time or under any name.
"""

from __future__ import annotations

from dataclasses import replace

from deltahub.errors import InUseError, NotFoundError
from deltahub.reference import Reference
from deltahub.registry.case_collisions import refuse_twin
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Moving
from deltahub.registry.hub_records import REPOSITORIES, repository_key
from deltahub.registry.journal.entries import record
from deltahub.registry.promotion.guard import guard_rename
from deltahub.registry.registry import Registry, ref_key
from deltahub.stores.retry import SwapRetry


def rename(
    registry: Registry, old: Reference, new: Reference, stamp: tuple[str, str] | None = None
) -> ReferenceDocument:
    """Rename a delta; the old name becomes a redirect.

    Args:
        stamp: the time and author of the rename; by default now and the current user.

    Returns:
        The document under the new name.

    Raises:
        NotFoundError: the delta does not exist.
        RefusedMoveError: an alias of it is protected, and this one is not an admin.
        InUseError: another delta or another repository of a hub has the new name. Nothing was changed.
        ReferenceSyntaxError: the new name differs from another one in upper and lower case only.
        ConflictError: others kept changing the delta. It still has its old name.
    """
    refuse_twin(registry, new.path)
    decided: tuple[int, Move] | None = None  # the position and the entry of the rename in the log, once done
    retry = SwapRetry()
    while True:
        document, etag = registry.settled(old.path)
        if document is None:
            raise NotFoundError(old.path, (registry.place,))
        done = decided and document.log[decided[0] : decided[0] + 1] == decided[1:]
        if done or document.name == new.path:  # it may have changed or been renamed again since
            registry.store.settle([ref_key(old.path), ref_key(new.path)])
            record(registry.store, [old.path, new.path])
            return document
        try:
            with retry:
                guard_rename(registry, registry.actor, document, new.path)
                moving = Moving(new.path, _free(registry, new.path, document), *(stamp or registry.stamp()))
                _carry_record(registry, document.name, new.path, back=moving.over is not None)
                registry.swap_document(replace(document, moving=moving), etag)
                decided = len(document.log), replace(document, moving=moving).renamed()[0].log[-1]
        except InUseError:
            if registry.settled(old.path)[1] == etag:
                raise
            continue  # another process renamed it


def _carry_record(registry: Registry, old: str, new: str, *, back: bool) -> None:
    """Copy a hub's record of a repository to its new name.

    Args:
        back: whether the delta had that name before, so that the record there is its own.

    Raises:
        InUseError: another repository has the new name.
    """
    record = REPOSITORIES.read(registry.store, repository_key(old))
    if record is None:
        return
    there = REPOSITORIES.read(registry.store, repository_key(new))
    if there and there[0] == record[0]:
        return
    if there and not back:
        raise InUseError(old, f"{new} is another repository of a hub", "Choose a name that is free.")
    REPOSITORIES.write(registry.store, repository_key(new), record[0], there[1] if there else None)


def _free(registry: Registry, name: str, document: ReferenceDocument) -> str | None:
    """Return the etag of a redirect to this delta under the new name, which may be replaced; None if the name is unused.

    Raises:
        InUseError: the name belongs to another delta or leads to one.
    """
    stored = registry.store.read_tagged(ref_key(name))
    if stored is None:
        return None
    there = ReferenceDocument.from_bytes(stored[0], name)
    if there.moved_to == document.name:
        return stored[1]
    user = f"{name} is {'the old name of ' + there.moved_to if there.moved_to else 'another delta'}"
    raise InUseError(document.name, user, "Choose a name that is free.")
