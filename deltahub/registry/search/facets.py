"""Facets: the most frequent values of each facet among the search results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from deltahub.registry.search.conditions import Query

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

    @classmethod
    def of(cls, name: str, query: Query, counts: list[tuple[str, int]]) -> Facet:
        """Return a facet with the values that the query chose first, if no delta has them."""
        chosen = chosen_in(query, name)
        missing = [(value, 0) for value in chosen if value not in dict(counts)]
        return cls(name, (*missing, *counts), chosen)


def chosen_in(query: Query, name: str) -> tuple[str, ...]:
    """Return the values of a facet in a query."""
    return query.tags if name == "tags" else tuple(filter(None, [getattr(query, name)]))


class _Catalogue(Protocol):
    def facets(self, query: Query, limit: int = 8) -> list[Facet]: ...


def facets(catalogue: _Catalogue, query: Query, limit: int = 8) -> list[Facet]:
    """Count the values of each facet: see `deltahub.registry.search.catalogue.Catalogue.facets`."""
    return catalogue.facets(query, limit)
