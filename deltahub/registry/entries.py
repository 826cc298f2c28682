"""The entries of a reference document: versions, what stays of removed ones, and moves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


def number(version: str) -> int:
    """3 of ``"v3"``."""
    return int(version[1:])


def merged_tags(old: Iterable[str], new: Iterable[str]) -> tuple[str, ...]:
    """All tags, sorted; of the pairs with one key only the last."""
    return tuple(sorted({tag[: tag.find("=") + 1] or tag: tag for tag in (*old, *new)}.values()))


@dataclass(frozen=True)
class Version:
    """One immutable version, and what is said about it.

    Attributes:
        digest: of its manifest.
        time: when it was pushed, ISO 8601 in UTC.
        author: who pushed it.
        message: why.
        tags: labels and key=value pairs, sorted.
        summary: what a list shows, so that it need not read the manifest.
        parent: the version that it came from, if that is not the one numbered before it.
        card: Markdown that takes the place of the card that was pushed; None if it was not amended.
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
        """The entry as it is stored."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Removed:
    """What stays of a version that was removed, so that its number is never given again.

    Attributes:
        digest: of its manifest.
        time: when it was removed, ISO 8601 in UTC.
        author: who removed it.
        message: why.
        pushed_message: the message that it was pushed with.
    """

    digest: str
    time: str
    author: str
    message: str = ""
    pushed_message: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The tombstone as it is stored."""
        fields = dict(vars(self))
        if not self.pushed_message:
            del fields["pushed_message"]
        return fields


@dataclass(frozen=True)
class Moving:
    """A rename that was decided and is not done.

    Attributes:
        to: the new name.
        over: the etag of what it takes the place of there; None for nothing.
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
        what: the version, alias, branch or tags concerned; of a rename, the new name.
        before: what an alias or branch pointed to, the digest of a removed version, the old name, or what was amended.
        after: what it points to now, the digest of a pushed version, the version that is tagged, the new name, or the amendment.
    """

    time: str
    author: str
    action: str
    what: str
    before: str | None = None
    after: str | None = None
