"""The search index: a SQLite file brought up to date from the reference documents, and never the truth.

Only documents whose stamp changed are read again. A missing, old or damaged index is made anew.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from deltahub.errors import CheckpointError, DeltaHubError
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.query import Query, conditions, order
from deltahub.registry.registry import REFS, Registry

T = TypeVar("T")

_MOST: Final = 2**63 - 1  # what SQLite counts to
_DAMAGE: Final = (sqlite3.Error, TypeError, ValueError)  # what reading a damaged index can raise
_VERSION: Final = 1  # of the tables below
_TABLES: Final = """
CREATE TABLE documents (key TEXT PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE deltas (
    key TEXT PRIMARY KEY, name TEXT NOT NULL, delta_type TEXT, author TEXT, time TEXT NOT NULL,
    words TEXT NOT NULL, row TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE tags (key TEXT NOT NULL, tag TEXT NOT NULL, PRIMARY KEY (key, tag)) WITHOUT ROWID;
CREATE INDEX newest ON deltas (time DESC, name);
"""


@dataclass(frozen=True)
class Listed:
    """One line of a list: the newest version of a delta.

    Attributes:
        name: ``"namespace/name"``.
        version: the newest, e.g. ``"v3"``.
        digest: of its manifest.
        tags: of that version.
        aliases: alias to version.
        time: when it was pushed.
        author: who pushed it.
        summary: delta_type, backbone_class, backbone_checkpoint_name, size (bytes), parameters, metrics.
    """

    name: str
    version: str
    digest: str
    tags: tuple[str, ...]
    aliases: dict[str, str]
    time: str
    author: str
    summary: dict[str, Any]


class Index:
    """The index of one registry.

    Args:
        path: the SQLite file; made when missing.
        registry: what it indexes.
    """

    def __init__(self, path: Path, registry: Registry) -> None:
        self.path = path
        self.registry = registry

    def search(self, query: Query, limit: int | None = None, offset: int = 0) -> tuple[list[Listed], int]:
        """The deltas that a query means, in its order.

        Args:
            limit: at most so many; None for all.
            offset: leave out so many of the first.

        Returns:
            The deltas, and how many there are without the limit.
        """
        where, values = conditions(query)

        def ask(database: sqlite3.Connection) -> tuple[list[Listed], int]:
            total: int = database.execute(f"SELECT count(*) FROM deltas WHERE {where}", values).fetchone()[0]  # noqa: S608  (built below)
            rows = database.execute(
                f"SELECT row FROM deltas WHERE {where} ORDER BY {order(query)} LIMIT ? OFFSET ?",  # noqa: S608
                [*values, -1 if limit is None else min(limit, _MOST), min(offset, _MOST)],
            )
            return [_listed(json.loads(row)) for (row,) in rows], total

        return self.read(ask)

    def read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        """Ask the database something, once it is up to date.

        Args:
            ask: reads its tables; a damaged database is made anew, and then it is called again.
        """
        try:
            return self._read(self.path, ask)
        except _DAMAGE:  # the file holds nothing that cannot be made again
            for path in (self.path, Path(f"{self.path}-journal")):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        try:
            return self._read(self.path, ask)
        except _DAMAGE:  # nor can it be made: the cache is full or read-only
            return self._read(":memory:", ask)

    def _read(self, path: Path | str, ask: Callable[[sqlite3.Connection], T]) -> T:
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(path)) as database, database:
            self._refresh(database)
            return ask(database)

    def _refresh(self, database: sqlite3.Connection) -> None:
        known = dict(database.execute("SELECT key, stamp FROM documents"))
        current = dict(self.registry.store.keys(REFS))
        stale = [key for key in known if key not in current]
        changed = [key for key, stamp in current.items() if known.get(key) != stamp]
        _forget(database, [*stale, *changed])
        for key in changed:
            if not key.endswith(".json"):
                continue
            found = self.registry.store.read_tagged(key)
            if found is None:  # deleted since it was listed
                continue
            try:
                document = _document(key, found[0])
            except DeltaHubError as error:  # one damaged document must not hide the others
                import logging  # late: hardly ever needed

                logging.getLogger("deltahub").warning("%s cannot be listed: %s", key, error)
                continue
            if document.versions:  # else all were removed, or it was renamed
                _remember(database, key, document)
            database.execute("INSERT INTO documents VALUES (?, ?)", (key, current[key]))


def _document(key: str, data: bytes) -> ReferenceDocument:
    path = key[len(REFS) : -len(".json")]
    document = ReferenceDocument.from_bytes(data, path)
    if document.name != path:  # a copied file: no command finds this delta there
        msg = f"It is the reference document of {document.name}. Remove it, or push to {path} under its own name."
        raise CheckpointError(msg)
    return document


def _connect(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30)
    try:
        if database.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
            found = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            # Another process may make them at the same time.
            drops = "".join(f"DROP TABLE IF EXISTS {name};" for name in {*found, "documents", "deltas", "tags"})
            database.executescript(f"BEGIN IMMEDIATE;{drops}{_TABLES}PRAGMA user_version = {_VERSION};COMMIT;")
    except sqlite3.DatabaseError:
        database.close()
        raise
    return database


def _forget(database: sqlite3.Connection, keys: Collection[str]) -> None:
    for table in ("documents", "deltas", "tags"):
        database.executemany(f"DELETE FROM {table} WHERE key = ?", [(key,) for key in keys])  # noqa: S608


def _remember(database: sqlite3.Connection, key: str, document: ReferenceDocument) -> None:
    version = document.latest
    entry = document.versions[version]
    row = {
        "name": document.name,
        "version": version,
        "digest": entry.digest,
        "tags": list(entry.tags),
        "aliases": dict(document.aliases),
        "time": entry.time,
        "author": entry.author,
        "summary": dict(entry.summary),
    }
    texts = (entry.summary.get(k, "") for k in ("delta_type", "backbone_class", "backbone_checkpoint_name"))
    words = " ".join([document.name, *entry.tags, *map(str, texts), entry.message]).lower()
    delta_type = str(entry.summary.get("delta_type") or "")
    values = (key, document.name, delta_type, entry.author, entry.time, words, json.dumps(row))
    database.execute("INSERT INTO deltas VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    database.executemany("INSERT INTO tags VALUES (?, ?)", [(key, tag) for tag in entry.tags])


def _listed(row: dict[str, Any]) -> Listed:
    return Listed(**{**row, "tags": tuple(row["tags"])})
