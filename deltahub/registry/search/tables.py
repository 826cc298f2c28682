"""The tables of the search index, and their contents for a delta: its newest version.

Numbers and facets are columns, so that a list is sorted, filtered and counted without reading a row's JSON. The words of a delta
are found by their trigrams (FTS5), or by a scan where this Python's SQLite lacks FTS5; the results are the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from deltahub.registry.search.entry import CatalogueEntry
from deltahub.stores.folder_stamps import FolderStamp
from deltahub.stores.retry import INDEX_TIMEOUT

_VERSION: Final = 12  # of the tables below; the next number is for them without FTS5
_PAGES: Final = 65_536  # kB of page cache; a smaller one makes SQLite write and read pages over and over
_TRIGRAMS: Final = (
    "CREATE VIRTUAL TABLE trigrams USING "
    "fts5(words, content = 'texts', content_rowid = 'id', tokenize = 'trigram case_sensitive 1')"
)
_TABLES: Final = """
CREATE TABLE folders (folder TEXT PRIMARY KEY, stamp TEXT NOT NULL, seen REAL NOT NULL, settled REAL) WITHOUT ROWID;
CREATE TABLE state (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (key TEXT PRIMARY KEY, stamp TEXT NOT NULL, id INTEGER) WITHOUT ROWID;
CREATE TABLE deltas (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, namespace TEXT NOT NULL, time TEXT NOT NULL, author TEXT,
    delta_type TEXT, backbone TEXT, fingerprint TEXT, record TEXT, size INTEGER, parameters INTEGER, versions INTEGER NOT NULL
);
CREATE TABLE texts (id INTEGER PRIMARY KEY, words TEXT NOT NULL);
CREATE TABLE rows (id INTEGER PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE tags (tag TEXT NOT NULL, id INTEGER NOT NULL, PRIMARY KEY (tag, id)) WITHOUT ROWID;
CREATE TABLE metrics (name TEXT NOT NULL, id INTEGER NOT NULL, value REAL NOT NULL, PRIMARY KEY (name, id)) WITHOUT ROWID;
CREATE INDEX newest ON deltas (time DESC, name);
CREATE INDEX names ON deltas (name);
CREATE INDEX delta_types ON deltas (delta_type);
CREATE INDEX authors ON deltas (author);
CREATE INDEX namespaces ON deltas (namespace);
CREATE INDEX backbones ON deltas (backbone);
CREATE INDEX fingerprints ON deltas (fingerprint);
CREATE INDEX records ON deltas (record);
CREATE INDEX tags_of ON tags (id);
CREATE INDEX metrics_of ON metrics (id);
"""


@functools.cache
def has_trigrams() -> bool:
    """Check whether this Python's SQLite has FTS5 with its trigram tokenizer."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        try:
            database.execute(_TRIGRAMS)
        except sqlite3.OperationalError:
            return False
    return True


def connect(path: Path | str) -> sqlite3.Connection:
    """Open an index; a new one, or one with other tables, is created empty.

    Raises:
        sqlite3.Error: it is damaged, or cannot be created.
    """
    database = sqlite3.connect(path, timeout=INDEX_TIMEOUT)
    version = _VERSION if has_trigrams() else _VERSION + 1
    try:
        database.execute(f"PRAGMA cache_size = -{_PAGES}")
        if _version(database) != version:
            database.execute("BEGIN IMMEDIATE")  # another process may create the tables concurrently
            if _version(database) != version:
                _make(database, version)
            database.commit()
    except sqlite3.Error:
        database.close()
        raise
    return database


def _version(database: sqlite3.Connection) -> int:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    return version


def _make(database: sqlite3.Connection, version: int) -> None:
    database.execute("DROP TABLE IF EXISTS trigrams")  # first, as it owns further tables
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        database.execute(f'DROP TABLE IF EXISTS "{name}"')
    trigrams = [_TRIGRAMS] if has_trigrams() else []
    for statement in (*_TABLES.split(";"), *trigrams, f"PRAGMA user_version = {version}"):
        database.execute(statement)


class SqliteTables:
    """The contents of an index: see `deltahub.registry.search.contents.Contents`.

    Args:
        database: an open index.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def commits(self) -> int:
        """Return a number that changes when another connection writes the index."""
        version: int = self.database.execute("PRAGMA data_version").fetchone()[0]
        return version

    def lock(self) -> None:
        """Keep other processes from writing until the caller commits."""
        self.database.execute("BEGIN IMMEDIATE")

    def folders(self) -> dict[str, FolderStamp]:
        """Return the state of each folder."""
        rows = self.database.execute("SELECT folder, stamp, seen, settled FROM folders")
        return {folder: FolderStamp(*state) for folder, *state in rows}

    def set_folder(self, folder: str, state: FolderStamp | None) -> None:
        """Store the state of a folder; None forgets it."""
        if state is None:
            self.database.execute("DELETE FROM folders WHERE folder = ?", (folder,))
        else:
            row = (folder, state.stamp, state.seen, state.settled)
            self.database.execute("REPLACE INTO folders VALUES (?, ?, ?, ?)", row)

    def state(self) -> str | None:
        """Return what the reader of a journal stored."""
        row = self.database.execute("SELECT value FROM state WHERE id = 1").fetchone()
        return row[0] if row else None

    def set_state(self, value: str) -> None:
        """Store what the reader of a journal needs next time."""
        self.database.execute("REPLACE INTO state VALUES (1, ?)", (value,))

    @property
    def edition(self) -> str:
        """A text that is another one whenever the contents changed; empty for a new index."""
        row = self.database.execute("SELECT value FROM state WHERE id = 2").fetchone()
        return row[0] if row else ""

    def set_edition(self) -> None:
        """Mark the contents as changed."""
        self.database.execute("REPLACE INTO state VALUES (2, ?)", (uuid.uuid4().hex,))

    def stamps(self, folder: str) -> dict[str, str]:
        """Return the documents below a folder with their stamps."""
        after = f"{folder[:-1]}0"  # "0" is the character after "/"
        return dict(
            self.database.execute("SELECT key, stamp FROM documents WHERE key > ? AND key < ?", (folder, after))
        )

    def count(self) -> int:
        """Return the number of documents."""
        count: int = self.database.execute("SELECT count(*) FROM documents").fetchone()[0]
        return count

    def entries(self, keys: Collection[str] | None = None) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
        """Iterate over documents with their stamps and entries."""
        rows, values = "SELECT key, stamp, row FROM documents LEFT JOIN rows USING (id)", list[str]()
        if keys is not None:
            rows, values = rows + " WHERE key IN (SELECT value FROM json_each(?))", [json.dumps(list(keys))]  # noqa: S608
        found = self.database.execute(rows, values)
        for key, stamp, row in found:
            yield key, stamp, json.loads(row) if row else None

    def forget(self, keys: Collection[str]) -> None:
        """Remove documents and their deltas from the index."""
        key_list = json.dumps(list(keys))
        ids = "SELECT id FROM documents WHERE key IN (SELECT value FROM json_each(?))"
        if has_trigrams():  # an external-content table needs explicit deletes
            delete = f"INSERT INTO trigrams (trigrams, rowid, words) SELECT 'delete', id, words FROM texts WHERE id IN ({ids})"  # noqa: S608
            self.database.execute(delete, [key_list])
        for table in ("deltas", "rows", "texts", "tags", "metrics"):
            self.database.execute(f"DELETE FROM {table} WHERE id IN ({ids})", [key_list])  # noqa: S608
        self.database.execute("DELETE FROM documents WHERE key IN (SELECT value FROM json_each(?))", [key_list])

    def remember(self, key: str, stamp: str, entry: CatalogueEntry | None) -> None:
        """Put a document into the index, which does not have it."""
        delta = self._add(entry) if entry else None
        self.database.execute("INSERT INTO documents VALUES (?, ?, ?)", (key, stamp, delta))

    def _add(self, entry: CatalogueEntry) -> int | None:
        database, columns, words = self.database, entry.columns, entry.words
        names, places = ", ".join(columns), ", ".join("?" * len(columns))
        insert = f"INSERT INTO deltas ({names}) VALUES ({places})"  # noqa: S608  (names of `CatalogueEntry.columns`)
        delta = database.execute(insert, [*columns.values()]).lastrowid
        database.execute("INSERT INTO rows VALUES (?, ?)", (delta, json.dumps(entry.to_dict())))
        for table in ("texts (id, words)", *(["trigrams (rowid, words)"] if has_trigrams() else [])):
            database.execute(f"INSERT INTO {table} VALUES (?, ?)", (delta, words))  # noqa: S608
        database.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, delta) for tag in set(entry.newest.tags)])
        numbers = [(name, delta, value) for name, value in entry.metrics.items()]
        database.executemany("INSERT INTO metrics VALUES (?, ?, ?)", numbers)
        return delta
