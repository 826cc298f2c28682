"""The tables of a catalogue in PostgreSQL, in a schema of their own for each registry.

Words are found by trigrams where the extension pg_trgm can be created, which needs no superuser, and by a scan elsewhere; the results are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, LiteralString

from deltahub.registry.search.entry import CatalogueEntry
from deltahub.stores.folder_stamps import FolderStamp

if TYPE_CHECKING:
    from psycopg import Connection

_VERSION: Final = 1  # of the tables below
_TABLES: Final = """
CREATE TABLE state (version bigint NOT NULL, value text, deltas bigint NOT NULL);
INSERT INTO state VALUES (0, NULL, 0);
CREATE TABLE folders (folder text PRIMARY KEY, stamp text NOT NULL, seen float8 NOT NULL, settled float8);
CREATE TABLE documents (key text COLLATE "C" PRIMARY KEY, stamp text NOT NULL, id bigint);
CREATE TABLE deltas (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text COLLATE "C" NOT NULL, namespace text NOT NULL,
    time text COLLATE "C" NOT NULL, author text COLLATE "C", delta_type text COLLATE "C", backbone text COLLATE "C",
    fingerprint text, record text, size bigint, parameters bigint, versions bigint NOT NULL, tags text[] NOT NULL,
    words text COLLATE "C" NOT NULL
);
CREATE TABLE rows (id bigint PRIMARY KEY, row text NOT NULL);
CREATE TABLE metrics (metric text COLLATE "C" NOT NULL, value float8 NOT NULL, id bigint NOT NULL, PRIMARY KEY (metric, id));
"""
_INDEXES: Final = """
CREATE INDEX newest ON deltas (time DESC, name);
CREATE INDEX names ON deltas (name);
CREATE INDEX sizes ON deltas (size DESC NULLS LAST, name);
CREATE INDEX counts ON deltas (parameters DESC NULLS LAST, name);
CREATE INDEX delta_types ON deltas (delta_type, time DESC, name);
CREATE INDEX authors ON deltas (author, time DESC, name);
CREATE INDEX backbones ON deltas (backbone, time DESC, name);
CREATE INDEX fingerprints ON deltas (fingerprint);
CREATE INDEX records ON deltas (record);
CREATE INDEX tags ON deltas USING gin (tags);
CREATE INDEX metrics_by_value ON metrics (metric, value DESC);
CREATE INDEX metrics_of ON metrics (id);
"""
_TRIGRAMS: Final = "CREATE INDEX trigrams ON deltas USING gin (words public.gin_trgm_ops)"


def schema_of(url: str) -> str:
    """Return the name of the schema for a registry, made from its URL."""
    return f"deltahub_{hashlib.sha256(url.encode()).hexdigest()[:24]}"


def prepare(connection: Connection, schema: str) -> None:
    """Use a schema for this connection; a missing one, or one of other tables, is made anew.

    Raises:
        psycopg.Error: the database does not allow it.
    """
    import psycopg  # late: an extra

    with connection.transaction():
        connection.execute("SELECT set_config('search_path', %s, false)", [schema])
        made = connection.execute("SELECT obj_description(to_regnamespace(%s)::oid)", [schema]).fetchone()
        if made and made[0] == str(_VERSION):
            return
        connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [schema])
        made = connection.execute("SELECT obj_description(to_regnamespace(%s)::oid)", [schema]).fetchone()
        if made and made[0] == str(_VERSION):  # another process made it meanwhile
            return
        drop(connection, schema)
        name = psycopg.sql.Identifier(schema)
        connection.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(name))
        connection.execute(_TABLES)
        connection.execute(_INDEXES)
        try:
            with connection.transaction():
                connection.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public")
                connection.execute(_TRIGRAMS)
        except psycopg.Error as error:
            from deltahub.log import LOGGER  # late: hardly ever needed

            LOGGER.warning("Words are searched without an index, as pg_trgm cannot be used: %s", error)
        connection.execute(
            psycopg.sql.SQL("COMMENT ON SCHEMA {} IS {}").format(name, psycopg.sql.Literal(str(_VERSION)))
        )


def drop(connection: Connection, schema: str) -> None:
    """Remove the catalogue of a registry; the caller commits. The next one to use it makes it anew."""
    from psycopg import sql  # late: an extra

    connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


class PostgresTables:
    """The contents of a catalogue: see `deltahub.registry.search.contents.Contents`.

    Args:
        connection: a connection that uses the schema, within a transaction.
        schema: its name.
    """

    def __init__(self, connection: Connection, schema: str) -> None:
        self.connection, self._schema = connection, schema
        self.changed = False

    def _one(self, query: LiteralString, *values: object) -> Any:
        row = self.connection.execute(query, values).fetchone()
        return row[0] if row else None

    def commits(self) -> int:
        """Return a number that every change increments."""
        version: int = self._one("SELECT version FROM state")
        return version

    def lock(self) -> None:
        """Keep other processes from writing until the transaction ends."""
        self.connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [self._schema])

    def commit_count(self) -> None:
        """Increment the number of commits, if anything changed."""
        if self.changed:
            self.connection.execute("UPDATE state SET version = version + 1, deltas = (SELECT count(*) FROM deltas)")

    def folders(self) -> dict[str, FolderStamp]:
        """Return the state of each folder."""
        rows = self.connection.execute("SELECT folder, stamp, seen, settled FROM folders")
        return {folder: FolderStamp(*state) for folder, *state in rows}

    def set_folder(self, folder: str, state: FolderStamp | None) -> None:
        """Store the state of a folder; None forgets it."""
        self.changed = True
        self.connection.execute("DELETE FROM folders WHERE folder = %s", [folder])
        if state:
            row = [folder, state.stamp, state.seen, state.settled]
            self.connection.execute("INSERT INTO folders VALUES (%s, %s, %s, %s)", row)

    def state(self) -> str | None:
        """Return what the reader of a journal stored."""
        value: str | None = self._one("SELECT value FROM state")
        return value

    def set_state(self, value: str) -> None:
        """Store what the reader of a journal needs next time."""
        self.changed = True
        self.connection.execute("UPDATE state SET value = %s", [value])

    def stamps(self, folder: str) -> dict[str, str]:
        """Return the documents below a folder with their stamps."""
        after = f"{folder[:-1]}0"  # "0" is the character after "/"
        rows = self.connection.execute("SELECT key, stamp FROM documents WHERE key > %s AND key < %s", [folder, after])
        return dict(rows.fetchall())

    def count(self) -> int:
        """Return the number of documents."""
        count: int = self._one("SELECT count(*) FROM documents")
        return count

    def entries(self, keys: Collection[str] | None = None) -> Iterator[tuple[str, str, Mapping[str, Any] | None]]:
        """Iterate over documents with their stamps and entries."""
        chosen = None if keys is None else list(keys)
        with self.connection.cursor("entries") as cursor:  # on the server: there may be millions
            cursor.execute(
                "SELECT key, stamp, row FROM documents LEFT JOIN rows USING (id) WHERE %s::text[] IS NULL OR key = ANY(%s)",
                [chosen, chosen],
            )
            for key, stamp, row in cursor:
                yield key, stamp, json.loads(row) if row else None

    def forget(self, keys: Collection[str]) -> None:
        """Remove documents and their deltas."""
        if not keys:
            return
        self.changed = True
        gone = self.connection.execute("DELETE FROM documents WHERE key = ANY(%s) RETURNING id", [list(keys)])
        ids = [number for (number,) in gone if number is not None]
        for table in ("deltas", "rows", "metrics"):
            self.connection.execute(f"DELETE FROM {table} WHERE id = ANY(%s)", [ids])  # noqa: S608

    def remember(self, key: str, stamp: str, entry: CatalogueEntry | None) -> None:
        """Add a document."""
        self.changed = True
        if entry is None:
            self.connection.execute("INSERT INTO documents VALUES (%s, %s, NULL)", [key, stamp])
            return
        tags = sorted({plain(tag) for tag in entry.newest.tags})
        columns = [plain(value) if isinstance(value, str) else value for value in entry.columns.values()]
        metrics = entry.metrics
        names = ", ".join([*entry.columns, "tags", "words"])
        places = ", ".join(["%s"] * (len(columns) + 2))
        insert = f"""
            WITH delta AS (INSERT INTO deltas ({names}) VALUES ({places}) RETURNING id),
                row AS (INSERT INTO rows SELECT id, %s FROM delta),
                metric AS (INSERT INTO metrics SELECT pair.metric, pair.value, id
                    FROM delta, unnest(%s::text[], %s::float8[]) AS pair (metric, value))
            INSERT INTO documents SELECT %s, %s, id FROM delta
        """  # noqa: S608  (names of `CatalogueEntry.columns`)
        row = json.dumps(entry.to_dict())
        pairs = [[plain(metric) for metric in metrics], [*metrics.values()]]
        values = [*columns, tags, entry.words, row, *pairs, key, stamp]
        self.connection.execute(insert.encode(), values)


def plain(text: str) -> str:
    """Return a text that PostgreSQL can store: with '?' for what UTF-8 cannot encode, and a blank for NUL."""
    return text.replace("\0", " ").encode(errors="replace").decode()
