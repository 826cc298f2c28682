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


def merged(mine: ReferenceDocument, other_document: ReferenceDocument, time: str, author: str) -> ReferenceDocument:
    """Merge another registry's document into this one.

    Where aliases or key=value tags differ, the other document wins. Entries only in this one stay; versions removed here stay removed.

    Args:
        other_document: a document of the same delta. Its log may be empty: then it is partial.
        time: the time of the change; likewise `author`.

    Raises:
        ConflictError: a version has other content on the other side, or an alias equals a version number. Nothing was changed.
    """
    if other_document.name != mine.name:  # the delta was renamed here, which this log already records
        other_document = replace(other_document, name=mine.name, log=())
    for name, entry in other_document.versions.items():
        same_version = mine.versions.get(name) or mine.removed.get(name)
        if same_version and same_version.digest != entry.digest:
            raise ConflictError(f"{mine.name}@{name}", same_version.digest, entry.digest)
    _refuse_numbers(mine, other_document)
    _refuse_numbers(other_document, mine)
    if other_document.log and other_document.log[: len(mine.log)] == mine.log:
        return other_document
    result = mine
    for name, entry in other_document.versions.items():
        if name in result.versions:
            result = _with_amendments(result.with_tags(name, entry.tags, (), time, author), other_document, name)
        elif name not in result.removed:
            versions = {**result.versions, name: entry}
            ordered = {key: versions[key] for key in sorted(versions, key=number)}
            move = Move(time, author, "push", name, after=entry.digest)
            result = replace(result, versions=ordered, log=(*result.log, move))
    for alias, target in other_document.aliases.items():
        if target in result.versions:
            result = result.with_alias(alias, target, time, author)
    for branch, target in other_document.branches.items():
        if target in result.versions:
            result = result.with_branch(branch, target, time, author)
    return result


def _with_amendments(mine: ReferenceDocument, other_document: ReferenceDocument, version: str) -> ReferenceDocument:
    """Return a document with the other one's amendments of a version."""
    moves = [m for m in other_document.log if m.action == "amend" and m.what == version and m not in mine.log]
    if not moves:
        return mine
    entry = other_document.versions[version]
    amended = replace(mine.versions[version], message=entry.message, summary=entry.summary, card=entry.card)
    return mine.with_amended(version, amended, moves)


def _refuse_numbers(document: ReferenceDocument, other_document: ReferenceDocument) -> None:
    """Refuse an alias in one document that is a version number in the other."""
    for alias in document.aliases.keys() & {*other_document.versions, *other_document.removed}:
        raise ConflictError(
            f"{document.name}@{alias}", f"the alias of {document.aliases[alias]}", f"the version {alias}"
        )


def part(document: ReferenceDocument, version: str) -> ReferenceDocument:
    """Return a document with one version only, its tags and the aliases that point to it."""
    aliases = dict.fromkeys(document.aliases_of(version), version)
    return ReferenceDocument(document.name, {version: document.versions[version]}, aliases)
