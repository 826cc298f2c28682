"""The conditions and the order of a query as SQL of PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltahub.checkpoint.backbone_fit import FITS
from deltahub.checkpoint.backbone_record import Difference
from deltahub.registry.search.conditions import FACETS, INDEXED, Query
from deltahub.registry.search.entry import searchable
from deltahub.registry.search.postgres_tables import plain


@dataclass(frozen=True)
class Condition:
    """A condition on the table of deltas.

    Attributes:
        clauses: SQL; all must hold.
        values: their parameters.
    """

    clauses: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """The condition as a key of a cache."""
        return (self.clauses, repr(self.values))

    def also(self, clause: str, values: list[Any]) -> Condition:
        """Return this condition with one more clause."""
        return Condition((*self.clauses, clause), (*self.values, *values))

    def fitting(self, fits: Mapping[str | None, Difference], *, near: bool) -> Condition:
        """Return this condition for the deltas whose backbone records fit."""
        able = [record or "" for record, difference in fits.items() if near or difference.level in FITS]
        return self.also("coalesce(record, '') = ANY(%s)", [able])

    def asked(self, select: str, tail: str = "", values: list[Any] | None = None) -> tuple[bytes, list[Any]]:
        """Return a statement with this condition, and its parameters."""
        where = f"WHERE {' AND '.join(self.clauses)}" if self.clauses else ""
        return f"{select} {where} {tail}".encode(), [*self.values, *(values or [])]


def condition_of(query: Query) -> Condition:
    """Return the condition of a query."""
    condition = Condition()
    for word in searchable(query.text).split():
        condition = condition.also("words LIKE %s", [f"%{_literal(word)}%"])
    if query.tags:
        condition = condition.also("tags @> %s::text[]", [[plain(tag) for tag in query.tags]])
    for facet in FACETS:
        value = getattr(query, facet)
        if value is not None:
            condition = condition.also(f"{facet} = %s", [plain(value)])
    if query.hidden:
        condition = condition.also("name <> ALL(%s)", [list(query.hidden)])
    for metric in query.metrics:
        test = f"metric = %s AND value {metric.comparison} %s AND metrics.id = deltas.id"
        condition = condition.also(
            f"EXISTS (SELECT 1 FROM metrics WHERE {test})",  # noqa: S608  (a comparison that was parsed)
            [plain(metric.name), metric.value],
        )
    return condition


def order_of(query: Query) -> str | None:
    """Return a query's order as an SQL expression; None for the order by a metric."""
    direction = "ASC" if (query.sort == "name") != query.reverse else "DESC"
    if query.sort in INDEXED:
        return f"{query.sort} {direction}, name"
    if query.sort in ("size", "parameters"):
        return f"{query.sort} {direction} NULLS LAST, name"
    return None


def _literal(word: str) -> str:
    """Return a word with what LIKE reads as a pattern escaped."""
    return re.sub(r"([\\%_])", r"\\\1", word)
