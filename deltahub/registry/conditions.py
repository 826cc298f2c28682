"""A query as SQL over the index.

Each thing that a query asks can be had in two ways: as the *set* of all deltas that have it, which is short for what few have, or
as a *test* of one delta after the other, which soon fills a page with what many have. Both mean the same.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Final

from deltahub.registry.query import FACETS, Query
from deltahub.registry.tables import has_trigrams, searchable

Value = str | float

INDEXED: Final = ("time", "name")  # deltas are read in this order without sorting them; they are never NULL
_CONTAINS: Final = "instr((SELECT words FROM texts WHERE texts.id = deltas.id), ?) > 0"
_RISING: Final = ("name",)  # of these the smallest comes first


@dataclass(frozen=True)
class Part:
    """One thing that a query asks.

    Attributes:
        test: SQL condition on a delta, with `values`.
        source: SQL query of the ids of all deltas that pass, with `known`; empty if there is no way to them.
        scan: whether that query looks at every text, which is quicker than a test of each delta, but never short.
    """

    test: str
    values: tuple[Value, ...]
    source: str = ""
    known: tuple[Value, ...] = ()
    scan: bool = False


def parts(query: Query) -> list[Part]:
    """What a query asks, one by one."""
    found: list[Part] = []
    words = searchable(query.text).split()
    phrases = tuple(word for word in words if len(word) > 2 and has_trigrams())
    if phrases:
        match = " AND ".join('"{}"'.format(word.replace('"', '""')) for word in phrases)
        test = " AND ".join([_CONTAINS] * len(phrases))
        found.append(Part(test, phrases, "SELECT rowid FROM trigrams WHERE trigrams MATCH ?", (match,)))
    scan = "SELECT id FROM texts WHERE instr(words, ?) > 0"
    found += [Part(_CONTAINS, (word,), scan, (word,), scan=True) for word in words if word not in phrases]
    for tag in map(_plain, query.tags):
        test = "EXISTS (SELECT 1 FROM tags WHERE tag = ? AND tags.id = deltas.id)"
        found.append(Part(test, (tag,), "SELECT id FROM tags WHERE tag = ?", (tag,)))
    for facet in FACETS:
        value = getattr(query, facet)
        if value is not None:  # "+": as a test, it must not choose the order in which deltas are read
            known = (_plain(value),)
            found.append(Part(f"+{facet} = ?", known, f"SELECT id FROM deltas WHERE {facet} = ?", known))  # noqa: S608
    if query.hidden:
        found.append(Part("name NOT IN (SELECT value FROM json_each(?))", (json.dumps(query.hidden),)))
    for metric in query.metrics:
        where = f"name = ? AND value {metric.comparison} ?"
        test = f"EXISTS (SELECT 1 FROM metrics WHERE {where} AND metrics.id = deltas.id)"  # noqa: S608
        asked = (metric.name, metric.value)
        found.append(Part(test, asked, f"SELECT id FROM metrics WHERE {where}", asked))  # noqa: S608
    return found


def fewest(database: sqlite3.Connection, asked: list[Part]) -> int | None:
    """The part to start from: the one that fewest deltas have; None if no part has a way to them."""
    able = [number for number, part in enumerate(asked) if part.source]
    short = [number for number in able if not asked[number].scan] or able[:1]
    if len(short) < 2:
        return short[0] if short else None

    def size(number: int) -> int:
        counted = f"SELECT count(*) FROM ({asked[number].source})"  # noqa: S608  (built above)
        found: int = database.execute(counted, asked[number].known).fetchone()[0]
        return found

    return min(short, key=size)


def ids(asked: list[Part], first: int | None) -> tuple[str, list[Value]]:
    """All parts as an SQL query of the ids of deltas, and its values; a single part needs no look at the deltas themselves."""
    if len(asked) == 1 and first == 0:
        return asked[0].source, list(asked[0].known)
    where, values = joined(asked, first)
    return f"SELECT id FROM deltas WHERE {where}", values  # noqa: S608


def joined(asked: list[Part], first: int | None) -> tuple[str, list[Value]]:
    """All parts as one SQL condition over the table of deltas, and its values.

    Args:
        first: the part to start from; None to test one delta after the other.
    """
    clauses, values = ["1"], list[Value]()
    for number, part in enumerate(asked):
        clauses.append(f"deltas.id IN ({part.source})" if number == first else part.test)
        values += part.known if number == first else part.values
    return " AND ".join(clauses), values


def conditions(query: Query) -> tuple[str, list[Value]]:
    """A query as one SQL condition over the table of deltas, and its values."""
    asked = parts(query)
    return joined(asked, next((number for number, part in enumerate(asked) if part.source), None))


def order(query: Query) -> str:
    """A query's order as an SQL expression; equals are in the order of their names."""
    direction = "ASC" if (query.sort in _RISING) != query.reverse else "DESC"
    if query.sort in INDEXED:
        return f"{query.sort} {direction}, name"
    value = query.sort if query.sort in ("size", "parameters") else _number(query.sort)
    return f"{value} {direction} NULLS LAST, name"


def _number(metric: str) -> str:
    """A metric as an SQL expression; NULL where it is missing or no number. A query takes no name that holds quotes."""
    return f"(SELECT value FROM metrics WHERE metrics.id = deltas.id AND metrics.name = '{metric}')"  # noqa: S608


def _plain(text: str) -> str:
    """A text with '?' for what no text holds."""
    return text.encode(errors="replace").decode()
