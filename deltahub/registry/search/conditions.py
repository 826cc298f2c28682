"""A query as SQL over the index.

Each condition of a query has two equivalent forms: the *set* of all deltas that meet it, which is fast if few do, and a *test* of
each delta in turn, which fills a page quickly if many do.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Final

from deltahub.registry.search.query import FACETS, Query
from deltahub.registry.search.tables import has_trigrams, searchable

Value = str | float

INDEXED: Final = ("time", "name")  # the table has an index in this order, so no sort is needed; never NULL
_CONTAINS: Final = "instr((SELECT words FROM texts WHERE texts.id = deltas.id), ?) > 0"
_RISING: Final = ("name",)  # sorted in ascending order


@dataclass(frozen=True)
class Part:
    """One condition of a query.

    Attributes:
        test: SQL condition on a delta, with `values`.
        source: SQL query of the ids of all matching deltas, with `known`; empty if there is no such query.
        scan: whether that query scans every text: quicker than testing each delta, but slow for any number of matches.
    """

    test: str
    values: tuple[Value, ...]
    source: str = ""
    known: tuple[Value, ...] = ()
    scan: bool = False


def parts(query: Query) -> list[Part]:
    """Return the conditions of a query."""
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
        if value is not None:  # "+" keeps SQLite from choosing the index of this column for a test
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
    """Return the number of the part that fewest deltas match; None if no part has a query of ids."""
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
    """Return an SQL query of the matching ids, and its values; a single part does not need the table of deltas."""
    if len(asked) == 1 and first == 0:
        return asked[0].source, list(asked[0].known)
    where, values = joined(asked, first)
    return f"SELECT id FROM deltas WHERE {where}", values  # noqa: S608


def joined(asked: list[Part], first: int | None) -> tuple[str, list[Value]]:
    """Return all parts as one SQL condition over the table of deltas, and its values.

    Args:
        first: the part to start from; None to test each delta in turn.
    """
    clauses, values = ["1"], list[Value]()
    for number, part in enumerate(asked):
        clauses.append(f"deltas.id IN ({part.source})" if number == first else part.test)
        values += part.known if number == first else part.values
    return " AND ".join(clauses), values


def conditions(query: Query) -> tuple[str, list[Value]]:
    """Return a query as one SQL condition over the table of deltas, and its values."""
    asked = parts(query)
    return joined(asked, next((number for number, part in enumerate(asked) if part.source), None))


def order(query: Query) -> str:
    """Return a query's order as an SQL expression; ties are ordered by name."""
    direction = "ASC" if (query.sort in _RISING) != query.reverse else "DESC"
    if query.sort in INDEXED:
        return f"{query.sort} {direction}, name"
    value = query.sort if query.sort in ("size", "parameters") else _number(query.sort)
    return f"{value} {direction} NULLS LAST, name"


def _number(metric: str) -> str:
    """Return a metric as an SQL expression; NULL where it is missing or not a number. A query rejects names with quotes."""
    return f"(SELECT value FROM metrics WHERE metrics.id = deltas.id AND metrics.name = '{metric}')"  # noqa: S608


def _plain(text: str) -> str:
    """Return a text with '?' for each character that UTF-8 cannot encode, as no stored text has one."""
    return text.encode(errors="replace").decode()
