"""A catalogue in PostgreSQL, shared by hubs of many processes and machines.

While the database is down, searches are answered from an SQLite file of this process, brought up to date from the store in the same
way; the database is tried again every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import queue
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import parse_qs, urlsplit

from deltahub.errors import ConfigError
from deltahub.files.sized_cache import SizedCache
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.facets import SHOWN, Facet, chosen_in
from deltahub.registry.search.index import Index, Listed, fits_of, listed
from deltahub.registry.search.postgres_conditions import Condition, condition_of, order_of
from deltahub.registry.search.postgres_tables import PostgresTables, drop, plain, prepare, schema_of
from deltahub.registry.search.read_documents import Told
from deltahub.registry.search.refresh import refresh

if TYPE_CHECKING:
    from psycopg import Connection

T = TypeVar("T")

_PAUSE: Final = 5.0  # seconds between two tries of a database that is down
_CONNECT: Final = 3  # seconds
_WAIT: Final = "30s"  # for another process that updates the catalogue
_MOST: Final = 2**62  # rows of a page
_COUNTS: Final = 1 << 20  # bytes of counts kept in memory
_SCHEMES: Final = ("postgresql", "postgres")


def check_location(location: str) -> None:
    """Check the location of a database.

    Raises:
        ConfigError: it is not well formed, or holds a password, which the list of processes would show.
    """
    parts = urlsplit(location)
    shown = re.sub(r"//[^/@]*@", "//...@", location).partition("?")[0]
    if parts.scheme not in _SCHEMES:
        msg = f"{shown!r} is not the location of a catalogue: expected postgresql://host/database."
        raise ConfigError(msg)
    if parts.password is not None or "password" in parse_qs(parts.query):
        msg = f"The location of the catalogue, {shown}, must hold no password. Set PGPASSWORD, or write ~/.pgpass."
        raise ConfigError(msg)


class PostgresCatalogue:
    """The catalogue of a registry in a database: see `deltahub.registry.search.catalogue.Catalogue`.

    Args:
        location: ``"postgresql://host/database"``; what it leaves out comes from PGHOST and related variables.
        registry: the registry.
        fallback: answers while the database is down.

    Attributes:
        failure: why the database cannot be used at the moment; empty while it can.

    Raises:
        ConfigError: psycopg is not installed, or the location is not valid.
    """

    def __init__(self, location: str, registry: Registry, fallback: Index) -> None:
        check_location(location)
        try:
            import psycopg
        except ModuleNotFoundError as error:
            msg = "A catalogue in PostgreSQL needs the package psycopg, which is not installed: pip install 'deltahub[postgres]'"
            raise ConfigError(msg) from error
        self._psycopg = psycopg
        self.registry = registry
        self.failure = ""
        self._location, self._fallback, self._schema = location, fallback, schema_of(registry.store.url)
        self._idle: queue.LifoQueue[Connection] = queue.LifoQueue(8)
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._idle)
        self._next_try = 0.0
        self._counts: SizedCache[tuple[object, ...], Any] = SizedCache(_COUNTS, lambda _: 500)

    def refresh(self) -> None:
        """Bring the catalogue up to date."""
        self._read(lambda _connection, _version: None, self._fallback.refresh)

    def search(self, search: Search) -> tuple[list[Listed], int]:
        """Return the deltas that match a query in its order, and their number."""
        return self._read(partial(self._search, search), lambda: self._fallback.search(search), search.report)

    def facets(self, query: Query, limit: int = 8) -> list[Facet]:
        """Count the values of each facet."""

        def ask(connection: Connection, version: int) -> list[Facet]:
            key = (version, "facets", query, limit)
            found: list[Facet] = self._counts.get(
                key, lambda: [_facet(connection, name, query, limit) for name in SHOWN]
            )
            return found

        return self._read(ask, lambda: self._fallback.facets(query, limit))

    def drop(self) -> None:
        """Remove the catalogue; it is rebuilt from the store when it is needed.

        Raises:
            ConfigError: the database cannot be used.
        """
        try:
            with self._connection() as connection, connection.transaction():
                drop(connection, self._schema)
        except self._psycopg.Error as error:
            msg = f"The catalogue cannot be removed: {error}"
            raise ConfigError(msg) from error
        self._close_idle()

    def _search(self, search: Search, connection: Connection, version: int) -> tuple[list[Listed], int]:
        query, condition = search.query, condition_of(search.query)
        fits = {}
        if search.backbone is not None:
            rows = connection.execute(*condition.asked("SELECT DISTINCT record FROM deltas"))
            fits = fits_of(self.registry, [record for (record,) in rows], search.backbone)
            condition = condition.fitting(fits, near=query.near)
        total = self._counts.get(
            (version, *condition.key), lambda: connection.execute(*condition.asked(_COUNTED)).fetchone()
        )[0]
        ids = _page(connection, query, condition, search.limit, search.offset)
        rows = connection.execute("SELECT id, row, record FROM rows JOIN deltas USING (id) WHERE id = ANY(%s)", [ids])
        lines = {number: listed(json.loads(row), fits.get(record)) for number, row, record in rows}
        return [lines[number] for number in ids if number in lines], total

    def _read(self, ask: Callable[[Connection, int], T], otherwise: Callable[[], T], report: Told | None = None) -> T:
        """Run a function on the database, once it is up to date; while the database is down, run the other one."""
        if self.failure and time.monotonic() < self._next_try:
            return otherwise()
        try:
            try:
                result = self._ask(ask, report)
            except (self._psycopg.errors.UndefinedTable, self._psycopg.errors.InvalidSchemaName):  # dropped meanwhile
                self._close_idle()
                result = self._ask(ask, report)
        except (self._psycopg.OperationalError, self._psycopg.InterfaceError) as error:
            self._close_idle()
            self._failed(error)
            return otherwise()
        self.failure = ""
        return result

    def _ask(self, ask: Callable[[Connection, int], T], report: Told | None) -> T:
        with self._connection() as connection:
            tables = PostgresTables(connection, self._schema)
            with connection.transaction():
                upkeep = refresh(tables, self.registry, report)
                tables.commit_count()
            if upkeep:
                with connection.transaction():
                    upkeep()
            with connection.transaction():
                return ask(connection, tables.commits())

    def _failed(self, error: Exception) -> None:
        from deltahub.log import LOGGER  # late: hardly ever needed

        with self._lock:
            if not self.failure:
                LOGGER.warning("The catalogue in PostgreSQL cannot be used; searches read from the store: %s", error)
            self.failure = str(error).strip() or type(error).__name__
            self._next_try = time.monotonic() + _PAUSE

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Take a connection, a new one if none is idle; one that failed is not used again."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()

    def _connect(self) -> Connection:
        connection = self._psycopg.connect(
            self._location, autocommit=True, connect_timeout=_CONNECT, prepare_threshold=None
        )
        try:
            connection.execute("SELECT set_config('jit', 'off', false), set_config('lock_timeout', %s, false)", [_WAIT])
            prepare(connection, self._schema)
        except BaseException:
            connection.close()
            raise
        return connection

    def _close_idle(self) -> None:
        _close(self._idle)


def _close(connections: queue.LifoQueue[Connection]) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            connections.get_nowait().close()


_COUNTED: Final = "SELECT count(*) FROM deltas"


def _page(connection: Connection, query: Query, condition: Condition, limit: int | None, offset: int) -> list[int]:
    """Return the ids of one page, in order."""
    order, offset = order_of(query), min(offset, _MOST)
    limit = None if limit is None else min(limit, _MOST)
    if order is not None:
        page = condition.asked("SELECT id FROM deltas", f"ORDER BY {order} LIMIT %s OFFSET %s", [limit, offset])
        return [number for (number,) in connection.execute(*page)]
    # By a metric: those that have it from the index of its values, then the others.
    direction = "ASC" if query.reverse else "DESC"
    source = "SELECT id FROM metrics JOIN deltas USING (id)"
    having = condition.also("metric = %s", [plain(query.sort)])
    first = having.asked(source, f"ORDER BY value {direction}, name LIMIT %s OFFSET %s", [limit, offset])
    ids = [number for (number,) in connection.execute(*first)]
    if limit is not None and len(ids) >= limit:
        return ids
    row = connection.execute(*having.asked("SELECT count(*) FROM metrics JOIN deltas USING (id)")).fetchone()
    assert row
    lacking = condition.also(
        "NOT EXISTS (SELECT 1 FROM metrics WHERE metrics.id = deltas.id AND metric = %s)", [plain(query.sort)]
    )
    rest = None if limit is None else limit - len(ids)
    others = lacking.asked("SELECT id FROM deltas", "ORDER BY name LIMIT %s OFFSET %s", [rest, max(0, offset - row[0])])
    return ids + [number for (number,) in connection.execute(*others)]


def _facet(connection: Connection, name: str, query: Query, limit: int) -> Facet:
    if name == "tags":
        condition, source = (
            condition_of(query),
            'SELECT unnest(tags) COLLATE "C" AS value, count(*) AS times FROM deltas',
        )
    else:
        without: dict[str, Any] = {name: None}
        condition = condition_of(replace(query, **without)).also(f"{name} <> ''", [])
        source = f"SELECT {name} AS value, count(*) AS times FROM deltas"  # noqa: S608  (from SHOWN)
    tail = "GROUP BY value ORDER BY times DESC, value LIMIT %s"
    rows = connection.execute(*condition.asked(source, tail, [limit + len(chosen_in(query, name))]))
    return Facet.of(name, query, [(str(value), int(times)) for value, times in rows])
