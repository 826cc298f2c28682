"""Renames from a mirror's source, repeated in the mirror, so that it too has one delta with the same history."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from deltahub.reference import DeltaPath, Reference
from deltahub.registry.document import NOBODY, ReferenceDocument
from deltahub.registry.entries import Move
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename


def beginning(document: ReferenceDocument) -> tuple[str | None, Move]:
    """Return a delta's first name and its first log entry, which identify it under any name in any registry."""
    return next((move.before for _, move in _renames(document)), document.name), document.log[0]


def made_anew(document: ReferenceDocument) -> bool:
    """Check whether a delta reuses a name whose former delta was forgotten but for its numbers."""
    return bool(document.log) and document.log[0].action == "remove" and document.log[0].author == NOBODY


def known_as(target: Registry, source_document: ReferenceDocument) -> ReferenceDocument | None:
    """Find another registry's delta in this one, under its current name or a former one; None if it is not here.

    Args:
        source_document: the other registry's document.
    """
    there, _ = target.current(source_document.name)
    if there and (there.name == source_document.name or _same(there, source_document)):
        return there
    for _, move in reversed(_renames(source_document)):
        former, _ = target.current(move.before or "")
        if former and _same(former, source_document):
            return former
    return None


def follow(target: Registry, source_document: ReferenceDocument) -> DeltaPath:
    """Repeat the renames of a delta in another registry, and return its name here.

    Args:
        source_document: the other registry's document; the objects of its versions are already here.

    Raises:
        InUseError: another delta has the name here.
    """
    mine = known_as(target, source_document)
    if mine is None:
        return source_document.name
    for place, move in _renames(source_document):
        if mine.name == source_document.name:
            break
        if move.before != mine.name or not move.after or move in mine.log:  # also where this registry is further ahead
            continue
        before = replace(source_document, name=mine.name, log=source_document.log[:place])
        target.update(mine.name, partial(_brought, source_document=before))
        new = Reference(DeltaPath(move.after))
        mine = rename(target, Reference(mine.name), new, (move.time, move.author))
    return mine.name


def _brought(mine: ReferenceDocument, source_document: ReferenceDocument) -> ReferenceDocument:
    """Return the other registry's document as of its rename, unless this one has a history of its own."""
    return source_document if source_document.log[: len(mine.log)] == mine.log else mine


def _same(mine: ReferenceDocument, source_document: ReferenceDocument) -> bool:
    return beginning(mine) == beginning(source_document)


def _renames(document: ReferenceDocument) -> list[tuple[int, Move]]:
    return [(place, move) for place, move in enumerate(document.log) if move.action == "rename"]
