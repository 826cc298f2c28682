"""Renaming in a mirror what was renamed where it comes from, so that the mirror has one delta too, with the same history."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from deltahub.reference import Reference
from deltahub.registry.document import NOBODY, ReferenceDocument
from deltahub.registry.entries import Move
from deltahub.registry.registry import Registry
from deltahub.registry.renaming import rename


def beginning(document: ReferenceDocument) -> tuple[str | None, Move]:
    """The first name of a delta and the first entry of its log, which it has under whatever name and in whatever registry."""
    return next((move.before for _, move in _renames(document)), document.name), document.log[0]


def made_anew(document: ReferenceDocument) -> bool:
    """Whether a delta has a name that another one had before, of which only the numbers are left."""
    return bool(document.log) and document.log[0].action == "remove" and document.log[0].author == NOBODY


def known_as(target: Registry, theirs: ReferenceDocument) -> ReferenceDocument | None:
    """A delta of another registry as this one has it: under its name, or under one that it had before. None if it has none.

    Args:
        theirs: the other registry's document.
    """
    there, _ = target.current(theirs.name)
    if there and (there.name == theirs.name or _same(there, theirs)):
        return there
    for _, move in reversed(_renames(theirs)):
        former, _ = target.current(move.before or "")
        if former and _same(former, theirs):
            return former
    return None


def follow(target: Registry, theirs: ReferenceDocument) -> str:
    """Rename a delta as it was renamed in another registry, and return its name here.

    Args:
        theirs: the other registry's document; the objects of its versions are here.

    Raises:
        InUseError: another delta has the name here.
    """
    mine = known_as(target, theirs)
    if mine is None:
        return theirs.name
    for place, move in _renames(theirs):
        if mine.name == theirs.name:
            break
        if move.before != mine.name or not move.after or move in mine.log:  # also by who is further ahead
            continue
        before = replace(theirs, name=mine.name, log=theirs.log[:place])
        target.update(mine.name, partial(_brought, theirs=before))
        mine = rename(target, _reference(mine.name), _reference(move.after), (move.time, move.author))
    return mine.name


def _brought(mine: ReferenceDocument, theirs: ReferenceDocument) -> ReferenceDocument:
    """A document brought to where the other registry renamed it, unless it has a history of its own."""
    return theirs if theirs.log[: len(mine.log)] == mine.log else mine


def _same(mine: ReferenceDocument, theirs: ReferenceDocument) -> bool:
    return beginning(mine) == beginning(theirs)


def _renames(document: ReferenceDocument) -> list[tuple[int, Move]]:
    return [(place, move) for place, move in enumerate(document.log) if move.action == "rename"]


def _reference(path: str) -> Reference:
    namespace, _, name = path.partition("/")
    return Reference(namespace, name)
