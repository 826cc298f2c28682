"""What a search asks for, and how the index is asked for it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from deltahub.errors import ConfigError
from deltahub.registry.tables import has_trigrams, searchable

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@/ -]{0,62}[A-Za-z0-9_.@/-])?")
_METRIC: Final = re.compile(rf"({_NAME.pattern})\s*(>=|<=|!=|==|=|>|<)\s*(\S+)")

# What a list can be sorted by besides metrics: the column of the index, and whether the largest comes first.
_COLUMNS: Final = {
    "time": ("time", True),
    "name": ("name", False),
    "size": ("size", True),
    "parameters": ("parameters", True),
}
INDEXED: Final = ("time", "name")  # by these, a page is read in order; they are never NULL
FACETS: Final = ("delta_type", "author", "backbone", "fingerprint")  # columns: what a delta has one of


@dataclass(frozen=True)
class Metric:
    """What a metric of the newest version must be; a delta without that metric never fits.

    Attributes:
        name: e.g. ``"accuracy"``.
        comparison: ``"<"``, ``"<="``, ``"="``, ``"!="``, ``">="`` or ``">"``.
        value: what it is compared with.
    """

    name: str
    comparison: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Read ``"accuracy>0.9"``.

        Raises:
            ConfigError: it is nothing of the kind.
        """
        found = _METRIC.fullmatch(text.strip())
        try:
            value = float(found[3]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            msg = f"{text!r} is no condition on a metric: expected a name, one of < <= = != >= > and a number, as in 'accuracy>0.9'."
            raise ConfigError(msg)
        return cls(found[1], found[2].replace("==", "="), value)


@dataclass(frozen=True)
class Query:
    """What to look for; every field that is set must hold.

    Attributes:
        text: words that must all occur in the name, tags, type or backbone.
        tags: tags that the newest version must have.
        delta_type: e.g. ``"lora"``.
        author: who pushed the newest version.
        metrics: what its metrics must be.
        sort: ``"time"``, ``"name"``, ``"size"``, ``"parameters"`` or a metric; the newest and the largest come first, those
            without the metric last.
        reverse: the other way round.
        backbone: what the backbone is called.
        fingerprint: of the backbone, 32 hex digits.
        near: where deltas must fit a backbone, whether those that do not are wanted too.
        hidden: names that are left out.
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
        """Refuse a sort key that can be no metric.

        Raises:
            ConfigError: it is none.
        """
        if not _NAME.fullmatch(self.sort):
            msg = f"{self.sort!r} is nothing to sort by: expected {', '.join(_COLUMNS)} or a metric such as accuracy."
            raise ConfigError(msg)


def conditions(query: Query, *, frequent: bool = False) -> tuple[str, list[str | float]]:
    """A query as an SQL condition over the index, and its values.

    Args:
        frequent: whether many deltas have its words, so that looking at one after the other soon gives a page.
    """
    clauses: list[str] = ["1"]
    values: list[str | float] = []
    if words := searchable(query.text).split():
        clauses += _containing(words, frequent)
        values += words if frequent else _matching(words)
    for tag in query.tags:
        clauses.append("deltas.id IN (SELECT id FROM tags WHERE tag = ?)")
        values.append(tag)
    for facet in FACETS:
        value = getattr(query, facet)
        if value is not None:
            clauses.append(f"{facet} = ?")
            values.append(value)
    if query.hidden:
        clauses.append("name NOT IN (SELECT value FROM json_each(?))")
        values.append(json.dumps(query.hidden))
    for metric in query.metrics:
        clauses.append(f"deltas.id IN (SELECT id FROM metrics WHERE name = ? AND value {metric.comparison} ?)")  # noqa: S608
        values += [metric.name, metric.value]
    texts = [value.encode(errors="replace").decode() if isinstance(value, str) else value for value in values]
    return " AND ".join(clauses), texts  # '?' stands for what no text holds


def order(query: Query) -> str:
    """A query's order as an SQL expression; equals are in the order of their names."""
    value, falls = _COLUMNS.get(query.sort, (_number(query.sort), True))
    column = f"{value} {'DESC' if falls != query.reverse else 'ASC'}, name"
    return column if value in INDEXED else f"{value} IS NULL, {column}"


def _containing(words: Sequence[str], frequent: bool) -> list[str]:
    """Conditions on the text of a delta: it has all these words."""
    if frequent:
        return ["instr((SELECT words FROM texts WHERE texts.id = deltas.id), ?) > 0"] * len(words)
    phrases = ["deltas.id IN (SELECT rowid FROM trigrams WHERE trigrams MATCH ?)"] if any(map(_known, words)) else []
    scans = ["deltas.id IN (SELECT id FROM texts WHERE instr(words, ?) > 0)" for word in words if not _known(word)]
    return [*phrases, *scans]


def _matching(words: Sequence[str]) -> list[str]:
    """The values of these conditions: words that have trigrams as phrases of them, which is where they occur."""
    phrases = " AND ".join('"{}"'.format(word.replace('"', '""')) for word in words if _known(word))
    return [*([phrases] if phrases else []), *[word for word in words if not _known(word)]]


def _known(word: str) -> bool:
    return len(word) > 2 and has_trigrams()


def _number(metric: str) -> str:
    """A metric as an SQL expression; NULL where it is missing or no number. Its name holds no quotes: see `_NAME`."""
    return f"(SELECT value FROM metrics WHERE metrics.id = deltas.id AND metrics.name = '{metric}')"  # noqa: S608
