"""The calls of `import deltahub`: push, pull, amend and list over the hub of this user."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from deltahub.hub.hub import Hub
from deltahub.link import parse_reference
from deltahub.reference import Reference
from deltahub.registry.amend import Amendment
from deltahub.registry.publish import Publication
from deltahub.registry.search.conditions import Metric, Query, Search
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
