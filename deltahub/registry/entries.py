"""The entries of a reference document: versions, tombstones of removed ones, and moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def number(version: str) -> int:
    """Return the number of a version: 3 for ``"v3"``."""
    return int(version[1:])


def merged_tags(old: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    """Return all tags, sorted; of several pairs with the same key only the last."""
    return tuple(sorted({tag[: tag.find("=") + 1] or tag: tag for tag in (*old, *new)}.values()))


@dataclass(frozen=True)
class Version:
    """One immutable version and its details.

    Attributes:
        digest: the digest of its manifest.
        time: when it was pushed, ISO 8601 in UTC.
        author: who pushed it.
        message: why it was pushed.
        tags: labels and key=value pairs, sorted.
        summary: the values that a list shows, so that a list need not read the manifest.
        parent: the version that it came from, if that is not the one numbered before it.
        card: Markdown that replaces the pushed card; None if it was not amended.
    """

    digest: str
    time: str
    author: str
    message: str = ""
    tags: tuple[str, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    card: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as it is stored."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Removed:
    """The tombstone of a removed version, so that its number is never reused.

    Attributes:
        digest: the digest of its manifest.
        time: when it was removed, ISO 8601 in UTC.
        author: who removed it.
        message: why it was removed.
        pushed_message: the message of its push.
    """

    digest: str
    time: str
    author: str
    message: str = ""
    pushed_message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the tombstone as it is stored."""
        fields = dict(vars(self))
        if not self.pushed_message:
            del fields["pushed_message"]
        return fields


@dataclass(frozen=True)
class Moving:
    """A pending rename.

    Attributes:
        to: the new name.
        over: the etag of the document that it replaces there; None if there is none.
        time: when it was decided, ISO 8601 in UTC.
        author: who decided it.
    """

    to: str
    over: str | None
    time: str
    author: str


@dataclass(frozen=True)
class Move:
    """One entry of the log.

    Attributes:
        action: push, alias, unalias, undo, branch, tag, untag, remove, rename or amend.
        what: the version, alias, branch or tags concerned; for a rename, the new name.
        before: the former target of an alias or branch, the digest of a removed version, the old name, or the amended value.
        after: the new target, the digest of a pushed version, the tagged version, the new name, or the amendment.
    """

    time: str
    author: str
    action: str
    what: str
    before: str | None = None
    after: str | None = None
