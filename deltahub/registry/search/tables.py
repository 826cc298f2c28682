"""The tables of the search index, and their contents for a delta: its newest version.

Numbers and facets are columns, so that a list is sorted, filtered and counted without reading a row's JSON. The words of a delta
are found by their trigrams (FTS5), or by a scan where this Python's SQLite lacks FTS5; the results are the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from deltahub.checkpoint.foreign import FORMATS as FOREIGN
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version, option_words
from deltahub.stores.retry import INDEX_TIMEOUT

_VERSION: Final = 10  # of the tables below; the next number is for them without FTS5
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")  # the value of a tag that counts as a metric
_PAGES: Final = 65_536  # kB of page cache; a smaller one makes SQLite write and read pages over and over
_TRIGRAMS: Final = (
    "CREATE VIRTUAL TABLE trigrams USING "
    "fts5(words, content = 'texts', content_rowid = 'id', tokenize = 'trigram case_sensitive 1')"
)
_TABLES: Final = """
CREATE TABLE folders (folder TEXT PRIMARY KEY, stamp TEXT NOT NULL, seen REAL NOT NULL, settled REAL) WITHOUT ROWID;
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


def forget(database: sqlite3.Connection, keys: Collection[str]) -> None:
    """Remove documents and their deltas from the index."""
    key_list = json.dumps(list(keys))
    ids = "SELECT id FROM documents WHERE key IN (SELECT value FROM json_each(?))"
    if has_trigrams():  # an external-content table needs explicit deletes
        delete = (
            f"INSERT INTO trigrams (trigrams, rowid, words) SELECT 'delete', id, words FROM texts WHERE id IN ({ids})"  # noqa: S608
        )
        database.execute(delete, [key_list])
    for table in ("deltas", "rows", "texts", "tags", "metrics"):
        database.execute(f"DELETE FROM {table} WHERE id IN ({ids})", [key_list])  # noqa: S608
    database.execute("DELETE FROM documents WHERE key IN (SELECT value FROM json_each(?))", [key_list])


def remember(
    database: sqlite3.Connection, key: str, stamp: str, document: ReferenceDocument, record: str | None
) -> None:
    """Put a document into the index; one without versions, removed or renamed, has no delta.

    Args:
        key: the key of the document, which is not in the index.
        record: the sha256 of the newest version's `backbone.json`.
    """
    delta = None
    if document.versions:
        delta = _delta(database, document, record)
    database.execute("INSERT INTO documents VALUES (?, ?, ?)", (key, stamp, delta))


def _delta(database: sqlite3.Connection, document: ReferenceDocument, record: str | None) -> int | None:
    version = document.latest
    entry, summary = document.versions[version], document.versions[version].summary
    row = {
        "name": document.name,
        "version": version,
        "digest": entry.digest,
        "tags": list(entry.tags),
        "aliases": dict(document.aliases),
        "time": entry.time,
        "author": entry.author,
        "summary": dict(summary),
    }
    delta_type = _text(summary.get("delta_type"))
    method = delta_type.rpartition(" ")[2] if delta_type and summary.get("format") in FOREIGN else delta_type
    keys = ("backbone_checkpoint_name", "backbone_hash", "backbone_class")
    backbone, fingerprint, model = (_text(summary.get(key)) for key in keys)
    texts = filter(None, (delta_type, model, backbone, *option_words(summary)))
    words = " ".join([document.name, *entry.tags, *texts, entry.message, _text(summary.get("description")) or ""])
    numbers = [_whole(summary.get(key)) for key in ("size", "parameters")]
    values = (
        document.name,
        document.name.namespace,
        entry.time,
        entry.author,
        method,
        backbone,
        fingerprint,
        record,
    )
    insert = f"INSERT INTO deltas VALUES (NULL{', ?' * 11})"  # noqa: S608
    delta = database.execute(insert, (*values, *numbers, len(document.versions))).lastrowid
    database.execute("INSERT INTO rows VALUES (?, ?)", (delta, json.dumps(row)))
    for table in ("texts (id, words)", *(["trigrams (rowid, words)"] if has_trigrams() else [])):
        database.execute(f"INSERT INTO {table} VALUES (?, ?)", (delta, searchable(words)))  # noqa: S608
    database.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, delta) for tag in set(entry.tags)])
    numbered = {str(name): _real(value) for name, value in _metrics(entry).items()}
    database.executemany(
        "INSERT INTO metrics VALUES (?, ?, ?)",
        [(name, delta, value) for name, value in numbered.items() if value is not None],
    )
    return delta


def _metrics(entry: Version) -> dict[str, Any]:
    """Return the metrics of a version; a tag whose value is a number, such as ``accuracy=0.93``, counts as one."""
    pairs = (tag.partition("=") for tag in entry.tags)
    tagged = {key: float(value) for key, equals, value in pairs if equals and _NUMBER.fullmatch(value)}
    metrics = entry.summary.get("metrics")
    return {**tagged, **(metrics if isinstance(metrics, dict) else {})}


def searchable(text: str) -> str:
    """Return a text as search compares it: in lower case, with '?' for each character that UTF-8 cannot encode."""
    return text.lower().replace("\0", " ").encode(errors="replace").decode()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
