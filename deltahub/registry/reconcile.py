"""Merging of the versions, aliases and tags of a registry's document into another's.

A version has the same number on both sides. If the other side only has more history, its document is taken as it is, so that
a mirror is identical to the last byte; otherwise new entries are added and logged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from deltahub.errors import ConflictError
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, number

# Refuses an unsigned version whose registry requires a signature.
Vouched = Callable[[ReferenceDocument, str], None]


def merged(mine: ReferenceDocument, theirs: ReferenceDocument, time: str, author: str) -> ReferenceDocument:
    """Merge another registry's document into this one.

    Where aliases or key=value tags differ, the other document wins. Entries only in this one stay; versions removed here stay removed.

    Args:
        theirs: a document of the same delta. Its log may be empty: then it is partial.
        time: the time of the change; likewise `author`.

    Raises:
        ConflictError: a version has other content on the other side, or an alias equals a version number. Nothing was changed.
    """
    if theirs.name != mine.name:  # the delta was renamed here, which this log already records
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
    """Return a document with the other one's amendments of a version."""
    moves = [m for m in theirs.log if m.action == "amend" and m.what == version and m not in mine.log]
    if not moves:
        return mine
    entry = theirs.versions[version]
    amended = replace(mine.versions[version], message=entry.message, summary=entry.summary, card=entry.card)
    return mine.with_amended(version, amended, moves)


def _refuse_numbers(one: ReferenceDocument, other: ReferenceDocument) -> None:
    """Refuse an alias in one document that is a version number in the other."""
    for alias in one.aliases.keys() & {*other.versions, *other.removed}:
        raise ConflictError(f"{one.name}@{alias}", f"the alias of {one.aliases[alias]}", f"the version {alias}")


def part(document: ReferenceDocument, version: str) -> ReferenceDocument:
    """Return a document with one version only, its tags and the aliases that point to it."""
    aliases = dict.fromkeys(document.aliases_of(version), version)
    return ReferenceDocument(document.name, {version: document.versions[version]}, aliases)
