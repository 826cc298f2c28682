"""The search index: a SQLite file derived from the reference documents, never the source of truth.

A missing, old or damaged index is rebuilt.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from deltahub.checkpoint.backbone_fit import FITS, Tensors, fit
from deltahub.checkpoint.backbone_record import Difference, Fingerprint
from deltahub.errors import DeltaHubError
from deltahub.files.permissions import inherit_permissions, make_folder, make_root
from deltahub.reference import Digest
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import (
    INDEXED,
    Part,
    Query,
    Search,
    Value,
    conditions,
    fewest,
    ids,
    joined,
    order,
    parts,
)
from deltahub.registry.search.entry import CatalogueEntry
from deltahub.registry.search.facets import SHOWN, Facet, chosen_in
from deltahub.registry.search.read_documents import Told
from deltahub.registry.search.refresh import refresh
from deltahub.registry.search.tables import SqliteTables, connect
from deltahub.stores.base import object_key
from deltahub.stores.threads import map_concurrently

T = TypeVar("T")

INDEXES: Final = "index"  # folder of all indexes in the cache

_MOST: Final = 2**63 - 1  # SQLite's largest integer
_MANY: Final = 10_000  # from this many hits on, testing each delta fills a page sooner
_KEPT: Final = 1000  # counts kept in memory
_DAMAGE: Final = (sqlite3.Error, TypeError, ValueError)  # errors of a damaged index


@dataclass(frozen=True)
class Listed:
    """One line of a list: the newest version of a delta.

    Attributes:
        name: ``"namespace/name"``.
        version: the newest, e.g. ``"v3"``.
        digest: the digest of its manifest; empty where a hub lists none.
        tags: the tags of that version.
        aliases: alias to version.
        time: when it was pushed.
        author: who pushed it.
        summary: delta_type, backbone_class, backbone_checkpoint_name, size (bytes), parameters, metrics.
        fit: how it fits the requested backbone; None if none was requested.
    """

    name: str
    version: str
    digest: Digest | Literal[""]
    tags: tuple[str, ...]
    aliases: dict[str, str]
    time: str
    author: str
    summary: dict[str, Any]
    fit: Difference | None = None


class Index:
    """The index of a registry.

    Args:
        path: the SQLite file; created if missing.
        registry: the registry to index.
    """

    def __init__(self, path: Path, registry: Registry) -> None:
        self.path = path
        self.registry = registry
        self._counted: dict[tuple[object, ...], Any] = {}
        self.failure = ""  # see `Catalogue`: a damaged file is rebuilt at once

    @classmethod
    def of(cls, registry: Registry, folder: Path) -> Index:
        """Return a registry's index in a folder of several indexes, named after the registry's URL."""
        place = hashlib.sha256(registry.store.url.encode()).hexdigest()[:32]
        return cls(folder / f"{place}.sqlite3", registry)

    def refresh(self) -> None:
        """Bring the index up to date, so that the next search need not."""
        self.read(lambda _: None)

    def search(self, search: Search) -> tuple[list[Listed], int]:
        """Return the deltas that match a query in its order, and their number without limit and offset."""
        query = search.query

        def ask(database: sqlite3.Connection) -> tuple[list[Listed], int]:
            found, decided = parts(query), dict[str | None, Difference]()
            first = fewest(database, found)
            if search.backbone is not None:
                decided = self._decided(database, *joined(found, first), search.backbone)
                able = [
                    record or "" for record, difference in decided.items() if query.near or difference.level in FITS
                ]
                found.append(Part("ifnull(record, '') IN (SELECT value FROM json_each(?))", (json.dumps(able),)))
            matching, values = ids(found, first)
            key = (SqliteTables(database).edition, matching, *values)
            total = self._counted.get(key)
            if is_new := total is None:
                hits = database.execute(f"{matching} LIMIT ?", [*values, _MANY]).fetchall()
                total = len(hits)
            if total < _MANY:  # the list is complete
                condition, values = "id IN (SELECT value FROM json_each(?))", [json.dumps([hit for (hit,) in hits])]
            else:
                if is_new:
                    total = database.execute(f"SELECT count(*) FROM ({matching})", values).fetchone()[0]  # noqa: S608
                    self._count(key, total)
                condition, values = joined(found, None if query.sort in INDEXED else first)
            page = f"SELECT id FROM deltas WHERE {condition} ORDER BY {order(query)} LIMIT ? OFFSET ?"  # noqa: S608
            place = [-1 if search.limit is None else min(search.limit, _MOST), min(search.offset, _MOST)]
            chosen = database.execute(page, [*values, *place]).fetchall()
            one_row = "SELECT row, record FROM deltas JOIN rows USING (id) WHERE id = ?"
            rows = [database.execute(one_row, row_id).fetchone() for row_id in chosen]
            return [listed(json.loads(row), decided.get(record)) for row, record in rows], total

        return self.read(ask, search.report)

    def facets(self, query: Query, limit: int = 8) -> list[Facet]:
        """See `deltahub.registry.search.catalogue.Catalogue.facets`."""

        def ask(database: sqlite3.Connection) -> list[Facet]:
            key = (SqliteTables(database).edition, "facets", query, limit)
            return self._counted.get(key) or self._count(key, [_facet(database, name, query, limit) for name in SHOWN])

        return self.read(ask)

    def _count(self, key: tuple[object, ...], value: T) -> T:
        """Keep a count of one edition of the index, as counting again takes longer than all else."""
        if len(self._counted) >= _KEPT:
            self._counted.clear()
        self._counted[key] = value
        return value

    def _decided(
        self, database: sqlite3.Connection, condition: str, values: list[Value], backbone: Tensors
    ) -> dict[str | None, Difference]:
        """Compare each backbone record of the matching deltas with the backbone; many deltas share a record."""
        rows = database.execute(f"SELECT DISTINCT record FROM deltas WHERE {condition}", values)  # noqa: S608
        return fits_of(self.registry, [record for (record,) in rows], backbone)

    def read(self, ask: Callable[[sqlite3.Connection], T], report: Told | None = None) -> T:
        """Run a function on the database, once it is up to date.

        Args:
            ask: reads the tables; if the database is damaged, it is rebuilt and this is called again.
            report: see `Search.report`.
        """
        try:
            return self._read(self.path, ask, report)
        except _DAMAGE as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                return self._read(":memory:", ask, report)  # another process still holds its lock
            # Deleting the file loses nothing: it can be rebuilt.
            for path in (self.path, Path(f"{self.path}-journal")):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        try:
            return self._read(self.path, ask, report)
        except _DAMAGE:  # it cannot be rebuilt either: the cache is full or read-only
            return self._read(":memory:", ask, report)

    def _read(self, path: Path | str, ask: Callable[[sqlite3.Connection], T], report: Told | None) -> T:
        folder, new = self.path.parent, not self.path.exists()
        with contextlib.suppress(OSError):
            make_root(folder.parent)
            make_folder(folder.parent, folder)
        with contextlib.closing(connect(path)) as database:
            if new:
                inherit_permissions(folder, [self.path])
            contents = SqliteTables(database)
            with database:
                upkeep = refresh(contents, self.registry, report)
                if database.total_changes:
                    contents.set_edition()
            if upkeep:
                with database:
                    upkeep()
            return ask(database)


def fits_of(registry: Registry, records: Sequence[str | None], backbone: Tensors) -> dict[str | None, Difference]:
    """Compare backbone records, given by their sha256, with a backbone."""

    def decide(record: str | None) -> Difference:
        try:
            data = registry.store.read(object_key(record)) if record else None
            expected = Fingerprint.from_bytes(data) if data else Fingerprint(())
        except DeltaHubError:  # missing or damaged: `verify` reports it
            expected = Fingerprint(())
        return fit(expected, backbone)

    return dict(zip(records, map_concurrently(decide, records, registry.store.at_once), strict=True))


def _facet(database: sqlite3.Connection, name: str, query: Query, limit: int) -> Facet:
    if name == "tags":
        condition, values = conditions(query)
        source = "deltas JOIN tags USING (id)" if values else "tags"  # without conditions, every tag counts
        counted = f"SELECT tag AS value, count(*) AS times FROM {source}"  # noqa: S608  (one of the two)
    else:
        without: dict[str, Any] = {name: None}
        condition, values = conditions(replace(query, **without))
        counted = f"SELECT {name} AS value, count(*) AS times FROM deltas"  # noqa: S608  (from SHOWN)
    rows = database.execute(
        f"{counted} WHERE {condition} GROUP BY value HAVING value <> '' ORDER BY times DESC, value LIMIT ?",
        [*values, limit + len(chosen_in(query, name))],
    )
    return Facet.of(name, query, [(str(value), int(times)) for value, times in rows])


def listed(row: Mapping[str, Any], fit: Difference | None) -> Listed:
    """Return the line of a list for a delta, stored as by `CatalogueEntry.to_dict`."""
    entry = CatalogueEntry.from_dict(row)
    newest = entry.newest
    return Listed(
        entry.name,
        entry.version,
        newest.digest,
        newest.tags,
        dict(entry.aliases),
        newest.time,
        newest.author,
        dict(newest.summary),
        fit,
    )
