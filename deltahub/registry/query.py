"""What a search asks for, and how the index is asked for it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from deltahub.errors import ConfigError

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@/ -]{0,62}[A-Za-z0-9_.@/-])?")
_METRIC: Final = re.compile(rf"({_NAME.pattern})\s*(>=|<=|!=|==|=|>|<)\s*(\S+)")

# What a list can be sorted by besides metrics: the expression over the index, and whether the largest comes first.
_COLUMNS: Final = {
    "time": ("time", True),
    "name": ("name", False),
    "size": ("json_extract(row, '$.summary.size')", True),
    "parameters": ("json_extract(row, '$.summary.parameters')", True),
}
# What a delta has one of, as expressions over the index.
FACETS: Final = {
    "delta_type": "delta_type",
    "author": "author",
    "backbone": "json_extract(row, '$.summary.backbone_checkpoint_name')",
    "fingerprint": "json_extract(row, '$.summary.backbone_hash')",
}


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

    def __post_init__(self) -> None:
        """Refuse a sort key that can be no metric.

        Raises:
            ConfigError: it is none.
        """
        if not _NAME.fullmatch(self.sort):
            msg = f"{self.sort!r} is nothing to sort by: expected {', '.join(_COLUMNS)} or a metric such as accuracy."
            raise ConfigError(msg)


def conditions(query: Query) -> tuple[str, list[str | float]]:
    """A query as an SQL condition over the index, and its values."""
    clauses: list[str] = ["1"]
    values: list[str | float] = []
    for word in query.text.lower().split():
        clauses.append("instr(words, ?) > 0")
        values.append(word)
    for tag in query.tags:
        clauses.append("EXISTS (SELECT 1 FROM tags WHERE tags.key = deltas.key AND tag = ?)")
        values.append(tag)
    for facet in ("delta_type", "author", "backbone", "fingerprint"):
        value = getattr(query, facet)
        if value is not None:
            clauses.append(f"{FACETS[facet]} = ?")
            values.append(value)
    for metric in query.metrics:
        number = _number(metric.name)
        clauses.append(f"{number} {metric.comparison} ?")
        values.append(metric.value)
    texts = [value.encode(errors="replace").decode() if isinstance(value, str) else value for value in values]
    return " AND ".join(clauses), texts  # '?' stands for what no text holds


def order(query: Query) -> str:
    """A query's order as an SQL expression; equals are in the order of their names."""
    value, falls = _COLUMNS.get(query.sort, (_number(query.sort), True))
    return f"{value} IS NULL, {value} {'DESC' if falls != query.reverse else 'ASC'}, name"


def _number(metric: str) -> str:
    """A metric as an SQL expression; NULL where it is missing or no number. Its name holds no quotes: see `_NAME`."""
    path = f"""'$.summary.metrics."{metric}"'"""
    return f"CASE WHEN json_type(row, {path}) IN ('integer', 'real') THEN json_extract(row, {path}) END"
