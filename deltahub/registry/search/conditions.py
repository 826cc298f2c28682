"""A search query, and its conditions as SQL over the index.

Each condition of a query has two equivalent forms: the *set* of all deltas that meet it, which is fast if few do, and a *test* of
each delta in turn, which fills a page quickly if many do.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from deltahub.checkpoint.backbone_fit import Tensors
from deltahub.errors import ConfigError
from deltahub.files.documents import parse
from deltahub.registry.metrics import NAME, Metric
from deltahub.registry.search.entry import searchable
from deltahub.registry.search.read_documents import Told
from deltahub.registry.search.tables import has_trigrams

SORTS: Final = ("time", "name", "size", "parameters")  # sort keys besides metrics
FACETS: Final = ("delta_type", "author", "backbone", "fingerprint")  # columns with one value per delta


@dataclass(frozen=True)
class Query:
    """A search; every field that is set must match.

    Attributes:
        text: words that must all occur in the name, tags, type or backbone.
        tags: tags that the newest version must have.
        delta_type: e.g. ``"lora"``.
        author: who pushed the newest version.
        metrics: conditions on its metrics.
        sort: ``"time"``, ``"name"``, ``"size"``, ``"parameters"`` or a metric; the newest and the largest come first, those
            without the metric last.
        reverse: whether to reverse the order.
        backbone: the backbone's name.
        fingerprint: the backbone's fingerprint, 32 hex digits.
        near: whether to include deltas that do not fit, in a search for deltas that fit a backbone.
        hidden: names to leave out.
    """

    text: str = ""
    tags: tuple[str, ...] = ()
    delta_type: str | None = None
    author: str | None = None
    metrics: tuple[Metric, ...] = ()
    sort: str = "time"
    reverse: bool = False
    backbone: str | None = None
    fingerprint: str | None = None
    near: bool = False
    hidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an invalid sort key.

        Raises:
            ConfigError: `sort` is neither a known key nor a possible metric name.
        """
        if not NAME.fullmatch(self.sort):
            msg = f"{self.sort!r} is not a sort key: expected {', '.join(SORTS)} or a metric such as accuracy."
            raise ConfigError(msg)

    def to_json(self) -> str:
        """Return the query as a hub of DeltaHub is asked it; without `hidden`, which the hub knows itself."""
        fields = {key: value for key, value in asdict(self).items() if value not in (None, (), "", False)}
        fields.pop("hidden", None)
        metrics = [f"{metric.name}{metric.comparison}{metric.value!r}" for metric in self.metrics]
        return json.dumps({**fields, **({"metrics": metrics} if metrics else {})})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: it is nothing of the kind.
        """
        try:
            fields: Any = parse(text.encode())
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or not all(_is_field(key, value) for key, value in fields.items()):
            msg = "The query for deltas cannot be read. Update deltahub."
            raise ConfigError(msg)
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        metrics = tuple(map(Metric.parse, lists.get("metrics", ())))
        return cls(**{**fields, **lists, "metrics": metrics})


def _is_field(key: str, value: object) -> bool:
    if key in ("reverse", "near"):
        return isinstance(value, bool)
    if key in ("tags", "metrics"):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return key in ("text", "delta_type", "author", "sort", "backbone", "fingerprint") and isinstance(value, str)


@dataclass(frozen=True)
class Search:
    """A request for one page of the deltas that match a query.

    Attributes:
        query: the conditions and the order.
        limit: the most to return; None for all.
        offset: how many of the first to skip.
        backbone: the tensors of a backbone that the deltas must fit; None for any.
        report: called with the numbers of deltas read so far and in total, while an index has to be built.
    """

    query: Query = field(default_factory=Query)
    limit: int | None = None
    offset: int = 0
    backbone: Tensors | None = None
    report: Told | None = None


Value = str | float

INDEXED: Final = ("time", "name")  # the table has an index in this order, so no sort is needed; never NULL
_CONTAINS: Final = "instr((SELECT words FROM texts WHERE texts.id = deltas.id), ?) > 0"
_RISING: Final = ("name",)  # sorted in ascending order


@dataclass(frozen=True)
class Part:
    """One condition of a query.

    Attributes:
        test: SQL condition on a delta, with `values`.
        source: SQL query of the ids of all matching deltas, with `source_values`; empty if there is no such query.
        scan: whether that query scans every text: quicker than testing each delta, but slow for any number of matches.
    """

    test: str
    values: tuple[Value, ...]
    source: str = ""
    source_values: tuple[Value, ...] = ()
    scan: bool = False


def parts(query: Query) -> list[Part]:
    """Return the conditions of a query."""
    result: list[Part] = []
    words = searchable(query.text).split()
    phrases = tuple(word for word in words if len(word) > 2 and has_trigrams())
    if phrases:
        match = " AND ".join('"{}"'.format(word.replace('"', '""')) for word in phrases)
        test = " AND ".join([_CONTAINS] * len(phrases))
        result.append(Part(test, phrases, "SELECT rowid FROM trigrams WHERE trigrams MATCH ?", (match,)))
    scan = "SELECT id FROM texts WHERE instr(words, ?) > 0"
    result += [Part(_CONTAINS, (word,), scan, (word,), scan=True) for word in words if word not in phrases]
    for tag in map(_plain, query.tags):
        test = "EXISTS (SELECT 1 FROM tags WHERE tag = ? AND tags.id = deltas.id)"
        result.append(Part(test, (tag,), "SELECT id FROM tags WHERE tag = ?", (tag,)))
    for facet in FACETS:
        value = getattr(query, facet)
        if value is not None:  # "+" keeps SQLite from choosing the index of this column for a test
            bound = (_plain(value),)
            result.append(Part(f"+{facet} = ?", bound, f"SELECT id FROM deltas WHERE {facet} = ?", bound))  # noqa: S608
    if query.hidden:
        result.append(Part("name NOT IN (SELECT value FROM json_each(?))", (json.dumps(query.hidden),)))
    for metric in query.metrics:
        condition = f"name = ? AND value {metric.comparison} ?"
        test = f"EXISTS (SELECT 1 FROM metrics WHERE {condition} AND metrics.id = deltas.id)"  # noqa: S608
        pair = (metric.name, metric.value)
        result.append(Part(test, pair, f"SELECT id FROM metrics WHERE {condition}", pair))  # noqa: S608
    return result


def fewest(database: sqlite3.Connection, query_parts: list[Part]) -> int | None:
    """Return the number of the part that fewest deltas match; None if no part has a query of ids."""
    able = [number for number, part in enumerate(query_parts) if part.source]
    short = [number for number in able if not query_parts[number].scan] or able[:1]
    if len(short) < 2:
        return short[0] if short else None

    def size(number: int) -> int:
        counted = f"SELECT count(*) FROM ({query_parts[number].source})"  # noqa: S608  (built above)
        count: int = database.execute(counted, query_parts[number].source_values).fetchone()[0]
        return count

    return min(short, key=size)


def ids(query_parts: list[Part], first: int | None) -> tuple[str, list[Value]]:
    """Return an SQL query of the matching ids, and its values; a single part does not need the table of deltas."""
    if len(query_parts) == 1 and first == 0:
        return query_parts[0].source, list(query_parts[0].source_values)
    condition, values = joined(query_parts, first)
    return f"SELECT id FROM deltas WHERE {condition}", values  # noqa: S608


def joined(query_parts: list[Part], first: int | None) -> tuple[str, list[Value]]:
    """Return all parts as one SQL condition over the table of deltas, and its values.

    Args:
        first: the part to start from; None to test each delta in turn.
    """
    clauses, values = ["1"], list[Value]()
    for number, part in enumerate(query_parts):
        clauses.append(f"deltas.id IN ({part.source})" if number == first else part.test)
        values += part.source_values if number == first else part.values
    return " AND ".join(clauses), values


def conditions(query: Query) -> tuple[str, list[Value]]:
    """Return a query as one SQL condition over the table of deltas, and its values."""
    query_parts = parts(query)
    return joined(query_parts, next((number for number, part in enumerate(query_parts) if part.source), None))


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
