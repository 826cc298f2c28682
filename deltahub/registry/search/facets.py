"""Facets: the most frequent values of each facet among the search results, counted in the index."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, replace
from typing import Any, Final

from deltahub.registry.search.conditions import Query, conditions
from deltahub.registry.search.index import Index

SHOWN: Final = ("delta_type", "backbone", "tags", "author")


@dataclass(frozen=True)
class Facet:
    """The values of a facet.

    Attributes:
        name: the query field that it sets.
        values: the most frequent values with their number of deltas, the most frequent first.
        chosen: the values in the query.
    """

    name: str
    values: tuple[tuple[str, int], ...]
    chosen: tuple[str, ...]


def facets(index: Index, query: Query, limit: int = 8) -> list[Facet]:
    """Count the values of each facet.

    The query's own value of a facet does not narrow that facet, so that another one can be chosen instead; tags narrow each other.

    Args:
        limit: values per facet; the values in the query come on top.
    """

    def ask(database: sqlite3.Connection) -> list[Facet]:
        return [_facet(database, name, query, limit) for name in SHOWN]

    return index.read(ask)


def _facet(database: sqlite3.Connection, name: str, query: Query, limit: int) -> Facet:
    if name == "tags":
        condition, values = conditions(query)
        source = "deltas JOIN tags USING (id)" if values else "tags"  # without conditions, every tag counts
        counted = f"SELECT tag AS value, count(*) AS times FROM {source}"  # noqa: S608  (one of the two)
        chosen = query.tags
    else:
        without: dict[str, Any] = {name: None}
        condition, values = conditions(replace(query, **without))
        counted = f"SELECT {name} AS value, count(*) AS times FROM deltas"  # noqa: S608  (from SHOWN)
        chosen = tuple(filter(None, [getattr(query, name)]))
    rows = database.execute(
        f"{counted} WHERE {condition} GROUP BY value HAVING value <> '' ORDER BY times DESC, value LIMIT ?",
        [*values, limit + len(chosen)],
    )
    counts = [(str(value), int(times)) for value, times in rows]
    missing = [(value, 0) for value in chosen if value not in dict(counts)]
    return Facet(name, (*missing, *counts), chosen)
