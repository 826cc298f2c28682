"""The calls of `import deltahub`: push, pull, amend and list over the hub of this user."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from deltahub.hub import edits
from deltahub.hub.hub import Hub
from deltahub.link import parse_reference
from deltahub.reference import Reference
from deltahub.registry.amend import Amendment
from deltahub.registry.edits import ANYTHING, Anything
from deltahub.registry.metrics import Metric
from deltahub.registry.publish import Publication
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Listed
from deltahub.sources.base import Pulled, Pushed


def push(
    folder: str | os.PathLike[str],
    name: str | None = None,
    *,
    tags: Collection[str] = (),
    aliases: Collection[str] = (),
    message: str = "",
    to: str | None = None,
    expect: Mapping[str, str | None] | None = None,
    allow_pickle: bool = False,
    allow_untrained: bool = False,
) -> Pushed:
    """Publish a folder with a delta in any format: see `Hub.push`."""
    publication = Publication.of(
        Path(folder),
        name,
        to=to,
        tags=tags,
        aliases=aliases,
        message=message,
        expect=expect,
        allow_pickle=allow_pickle,
        allow_untrained=allow_untrained,
    )
    return Hub.open().publish(publication)


def pull(reference: str, *, to: str | os.PathLike[str] | None = None, force: bool = False) -> Pulled:
    """Fetch a delta into the cache and verify every byte: see `Hub.pull`."""
    return Hub.open().pull(parse_reference(reference), to=Path(to) if to else None, force=force)


def amend(
    reference: str,
    *,
    message: str | None = None,
    metrics: Mapping[str, float | None] | None = None,
    description: str | None = None,
    card: str | None = None,
) -> Reference:
    """Amend the metadata of a version after its push, in a registry or a DeltaHub hub; its content and digest stay.

    Args:
        reference: by default the newest version.
        message: why this version.
        metrics: name to value; None removes a metric. Others stay.
        description: of the version, in a few words.
        card: Markdown; an empty one shows the pushed card again.

    Returns:
        The version, with its source.

    Raises:
        NotFoundError: no source has it.
        ConfigError: a text is too long, a metric is not a number, or the source keeps no such changes.
    """
    return Hub.open().amend(Reference.parse(reference), Amendment(message, metrics or {}, description, card))[0]


def set_alias(
    reference: str,
    alias: str,
    *,
    remove: bool = False,
    expect: str | Anything | None = ANYTHING,
    reason: str = "",
) -> Reference:
    """Point an alias to a version, in a registry or behind a hub; every move is kept in the log.

    Args:
        reference: by default the newest version.
        remove: remove the alias; if the reference has a version, only if it points there.
        expect: the version that it must point to now, None if it must not exist; by default where it is seen to point.
        reason: why, for the log.

    Returns:
        The alias, with its source.

    Raises:
        ConflictError: it points elsewhere, or was moved concurrently. Nothing was changed.
        NotFoundError: no source has the delta or the version.
        ConfigError: the source keeps no aliases.
    """
    return edits.set_alias(
        Hub.open(), Reference.parse(reference), alias, remove=remove, expect=expect, reason=reason
    ).reference


def undo(reference: str, alias: str | None = None, *, reason: str = "") -> Reference:
    """Undo the last move of an alias, by default of the one that moved last, and return the alias with its source.

    Raises:
        NotFoundError: no source has the delta, or no move is left.
        ConflictError: an alias was moved concurrently. Nothing was changed.
    """
    return edits.undo(Hub.open(), Reference.parse(reference), alias, reason=reason).reference


def set_tags(reference: str, add: Collection[str] = (), remove: Collection[str] = ()) -> tuple[str, ...]:
    """Add and remove tags of a version, by default the newest, and return all of its tags.

    Raises:
        NotFoundError: no source has the delta or the version, or it lacks a tag to remove.
    """
    changed = edits.set_tags(Hub.open(), Reference.parse(reference), add, remove)
    return changed.document.versions[changed.reference.version or ""].tags


def remove(reference: str, *, message: str = "") -> Reference:
    """Remove one version, and return it with its source; its number is never reused.

    Args:
        message: the reason, shown to those who ask for it later.

    Raises:
        InUseError: an alias or a branch points to it. Nothing was changed.
        NotFoundError: no source has the delta or the version.
    """
    return edits.remove(Hub.open(), Reference.parse(reference), message=message).reference


def rename(reference: str, new: str) -> Reference:
    """Rename a delta, and return its new name with its source; the old name redirects to it.

    Args:
        new: ``"namespace/name"``.

    Raises:
        InUseError: the new name is taken. Nothing was changed.
        NotFoundError: no source has the delta.
    """
    return edits.rename(Hub.open(), Reference.parse(reference), Reference.parse(new))[0].reference


def list_deltas(
    query: str = "",
    *,
    tags: Collection[str] = (),
    delta_type: str | None = None,
    author: str | None = None,
    metrics: Collection[str] = (),
    sort: str = "time",
    reverse: bool = False,
    source: str | None = None,
    limit: int | None = None,
    offset: int = 0,
) -> list[Listed]:
    """List the deltas of a registry, newest first unless sorted otherwise.

    Args:
        query: words that must all occur in the name, tags, type or backbone.
        tags: required tags of the newest version.
        delta_type: e.g. ``"lora"``.
        author: the author of the newest version.
        metrics: conditions such as ``"accuracy>0.9"``.
        sort: ``"time"``, ``"name"``, ``"size"``, ``"parameters"`` or a metric.
        reverse: reverse the order.
        source: the registry; by default the default one.
        limit: the maximum number of results; None for all.
        offset: the number of results to skip.

    Raises:
        ConfigError: a condition or the sort key is invalid.
    """
    conditions = tuple(map(Metric.parse, metrics))
    search = Search(Query(query, tuple(tags), delta_type, author, conditions, sort, reverse), limit, offset)
    return Hub.open().search(search, source)[0]
