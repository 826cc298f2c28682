"""Catalogues of each kind, for the tests of their contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltahub.registry.registry import Registry
from deltahub.registry.search.catalogue import Catalogue, open_catalogue

KINDS = ["sqlite", "postgres"]


def catalogue(request: pytest.FixtureRequest, registry: Registry, folder: Path, kind: str | None = None) -> Catalogue:
    """A catalogue of the kind that the test asks for; one in PostgreSQL has a database of its own."""
    is_postgres = (kind or request.param) == "postgres"
    location = request.getfixturevalue("postgres").new_database() if is_postgres else None
    return open_catalogue(registry, folder / "catalogues", location)
