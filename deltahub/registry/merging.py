"""Bringing the versions, aliases and tags of one registry's document into another's.

A version has the same number on both sides. If the other side only has more history, its document is taken as it is, so that
a mirror is the same to the last byte; else what is new comes in, and its moves are logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deltahub.errors import ConflictError
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, number

# Refuses a version of a delta that its registry asks for a signature of and that has none.
Vouched = Callable[[ReferenceDocument, str], None]


def merged(mine: ReferenceDocument, theirs: ReferenceDocument, time: str, author: str) -> ReferenceDocument:
    """A document with all that another one says too.

    What both say differently is as the other one says, for aliases and pairs of tags. What only this one has stays; what was
    removed here stays removed.

    Args:
        theirs: a document of the same delta. Its log may be empty: then it is a part.
        time: of the change, as `author`.

    Raises:
        ConflictError: a version has other content on the other side. Nothing was changed.
    """
    if theirs.name != mine.name:  # the delta was renamed here, which its log tells
        theirs = replace(theirs, name=mine.name, log=())
    for name, entry in theirs.versions.items():
        known = mine.versions.get(name) or mine.removed.get(name)
        if known and known.digest != entry.digest:
            raise ConflictError(f"{mine.name}@{name}", known.digest, entry.digest)
    _refuse_numbers(mine, theirs)
    _refuse_numbers(theirs, mine)
    if theirs.log and theirs.log[: len(mine.log)] == mine.log:
        return theirs
    found = mine
    for name, entry in theirs.versions.items():
        if name in found.versions:
            found = _with_amendments(found.with_tags(name, entry.tags, (), time, author), theirs, name)
        elif name not in found.removed:
            versions = {**found.versions, name: entry}
            ordered = {key: versions[key] for key in sorted(versions, key=number)}
            move = Move(time, author, "push", name, after=entry.digest)
            found = replace(found, versions=ordered, log=(*found.log, move))
    for alias, target in theirs.aliases.items():
        if target in found.versions:
            found = found.with_alias(alias, target, time, author)
    for branch, target in theirs.branches.items():
        if target in found.versions:
            found = found.with_branch(branch, target, time, author)
    return found


def _with_amendments(mine: ReferenceDocument, theirs: ReferenceDocument, version: str) -> ReferenceDocument:
    """Return a document with what the other one amended of a version."""
    moves = [m for m in theirs.log if m.action == "amend" and m.what == version and m not in mine.log]
    if not moves:
        return mine
    entry = theirs.versions[version]
    amended = replace(mine.versions[version], message=entry.message, summary=entry.summary, card=entry.card)
    return mine.with_amended(version, amended, moves)


def _refuse_numbers(one: ReferenceDocument, other: ReferenceDocument) -> None:
    """Refuse an alias of one that is the number of a version of the other."""
    for alias in one.aliases.keys() & {*other.versions, *other.removed}:
        raise ConflictError(f"{one.name}@{alias}", f"the alias of {one.aliases[alias]}", f"the version {alias}")


def part(document: ReferenceDocument, version: str) -> ReferenceDocument:
    """One version of a document, with its tags and the aliases that point to it."""
    aliases = dict.fromkeys(document.aliases_of(version), version)
    return ReferenceDocument(document.name, {version: document.versions[version]}, aliases)
