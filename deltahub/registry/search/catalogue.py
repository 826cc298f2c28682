"""A catalogue: the newest version of each delta of a registry, in a database that answers searches.

The truth is in the registry's store: a catalogue can be dropped at any time, and is rebuilt. Two implementations pass one contract,
`tests/registry/search/test_contract.py`: an SQLite file for each user and process, and PostgreSQL for hubs of many processes and machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.facets import Facet
from deltahub.registry.search.index import Index, Listed


class Catalogue(Protocol):
    """The catalogue of a registry.

    Attributes:
        failure: why its database cannot be used at the moment, so that searches are answered without it; empty while it can.
    """

    failure: str

    def refresh(self) -> None:
        """Bring the catalogue up to date, so that the next search need not."""
        ...

    def search(self, search: Search) -> tuple[list[Listed], int]:
        """Return the deltas that match a query in its order, and their number without limit and offset.

        Every change that was acknowledged before the call is found.
        """
        ...

    def facets(self, query: Query, limit: int = 8) -> list[Facet]:
        """Count the values of each facet.

        The query's own value of a facet does not narrow that facet, so that another one can be chosen instead; tags narrow each other.

        Args:
            limit: values per facet; the values in the query come on top.
        """
        ...


def open_catalogue(registry: Registry, folder: Path, location: str | None = None) -> Catalogue:
    """Return the catalogue of a registry, without contacting anything.

    Args:
        folder: for SQLite files.
        location: a database of PostgreSQL, ``"postgresql://host/database"``; None for an SQLite file.

    Raises:
        ConfigError: psycopg is not installed, or the location is not well formed or holds a password.
    """
    index = Index.of(registry, folder)
    if location is None:
        return index
    from deltahub.registry.search.postgres import PostgresCatalogue  # late: an extra

    return PostgresCatalogue(location, registry, index)
