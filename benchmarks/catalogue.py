"""A catalogue of 1,000,000 deltas in SQLite and in PostgreSQL: searches, lists, facets and --fits.

    python benchmarks/catalogue.py [--deltas 1000000] [--kinds sqlite postgres] [--keep FOLDER]

The rows are written straight into the databases, as a refresh would write them; the journal says that
nothing changed, so that each search is one LIST of a store in memory and its queries. PostgreSQL is started for the run. With
--keep, what was built is kept and used again. It needs about 5 GB of disk and ten minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import OUT
from registry_scale import BACKBONES, METHODS, TASKS, leaves

from deltahub.checkpoint.backbone_fit import Tensors, backbone_tensors
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.reference import DeltaPath, Digest
from deltahub.registry.entries import Version, merged_tags
from deltahub.registry.journal.snapshot import HEAD
from deltahub.registry.registry import Registry, ref_key
from deltahub.registry.search.catalogue import Catalogue, open_catalogue
from deltahub.registry.search.conditions import Metric, Query, Search
from deltahub.registry.search.entry import CatalogueEntry
from deltahub.registry.search.from_journal import Progress
from deltahub.registry.search.index import Index
from deltahub.registry.search.postgres import PostgresCatalogue
from deltahub.registry.search.postgres_tables import PostgresTables
from deltahub.registry.search.tables import SqliteTables, connect
from deltahub.stores.memory import MemoryStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.postgres_server import new_postgres  # found by the line above

ROUNDS = 20  # searches of each kind, each for other values


class Still(MemoryStore):
    """A bucket in which nothing changes."""

    def keys(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Return the head of a snapshot alone."""
        return iter([(HEAD, "1")])


def entry(number: int, records: list[str]) -> CatalogueEntry:
    """Return one delta."""
    rng = random.Random(number)
    task, method, backbone = rng.choice(TASKS), rng.choice(METHODS), number % BACKBONES
    summary = {
        "delta_type": method,
        "backbone_class": "BertModel",
        "backbone_hash": f"{backbone:032x}",
        "backbone_checkpoint_name": f"acme/bert-{backbone}",
        "size": rng.randrange(10**5, 10**8),
        "parameters": rng.randrange(10**4, 10**7),
        "metrics": {"accuracy": round(rng.random(), 6)},
    }
    when = f"20{10 + number % 15}-{1 + number % 12:02}-{1 + number % 28:02}T{number % 24:02}:{number % 60:02}:05Z"
    tags = merged_tags((), (f"task={task}", "best" if number % 9 == 0 else "draft", f"run={number % 50_000}"))
    newest = Version(Digest.of(b"%d" % number), when, f"user{number % 500}", f"epoch {number % 30}", tags, summary)
    return CatalogueEntry(
        DeltaPath(f"team{number % 1000}/{task}-{number}"), "v3", newest, {"champion": "v3"}, 3, records[backbone]
    )


def progress() -> Progress:
    """Return the state of a catalogue that is up to date."""
    return Progress("1", "0" * 32, 1, listed=time.time())


def build_sqlite(index: Index, count: int, records: list[str]) -> None:
    """Fill an SQLite file."""
    index.path.parent.mkdir(parents=True, exist_ok=True)
    database = connect(index.path)
    with database:
        tables = SqliteTables(database)
        for number in range(count):
            one = entry(number, records)
            tables.remember(ref_key(one.name), "1", one)
        database.execute("ANALYZE")
    database.close()


_MADE = """
CREATE TEMP TABLE made AS SELECT n AS id, 'team' || n %% 1000 || '/' || task || '-' || n AS name, 'team' || n %% 1000 AS namespace,
    format('20%%s-%%s-%%sT%%s:%%s:05Z', 10 + n %% 15, lpad((1 + n %% 12)::text, 2, '0'), lpad((1 + n %% 28)::text, 2, '0'),
        lpad((n %% 24)::text, 2, '0'), lpad((n %% 60)::text, 2, '0')) AS time,
    'user' || n %% 500 AS author, method AS delta_type, 'acme/bert-' || n %% 40 AS backbone,
    lpad(to_hex(n %% 40), 32, '0') AS fingerprint, (%s::text[])[1 + n %% 40] AS record, 100000 + n * 7919 %% 100000000 AS size,
    10000 + n * 104729 %% 10000000 AS parameters, 3 AS versions,
    ARRAY[CASE WHEN n %% 9 = 0 THEN 'best' ELSE 'draft' END, 'run=' || n %% 50000, 'task=' || task] AS tags,
    n * 15485863 %% 1000003 / 1000003.0 AS accuracy, 'epoch ' || n %% 30 AS message
FROM (SELECT n, (%s::text[])[1 + n * 31 / 7 %% 8] AS task, (%s::text[])[1 + n * 17 / 5 %% 5] AS method
    FROM generate_series(1::bigint, %s) AS n) AS numbered
"""
_COPIED = (
    """INSERT INTO deltas (id, name, namespace, time, author, delta_type, backbone, fingerprint, record, size, parameters,
    versions, tags, words) OVERRIDING SYSTEM VALUE SELECT id, name, namespace, time, author, delta_type, backbone, fingerprint, record,
    size, parameters, versions, tags, concat_ws(' ', name, tags[1], tags[2], tags[3], delta_type, 'bertmodel', backbone, message)
    FROM made""",
    """INSERT INTO rows SELECT id, json_build_object('name', name, 'version', 'v3', 'aliases', json_build_object('champion', 'v3'),
    'versions', 3, 'record', record, 'newest', json_build_object('digest', 'sha256:' || encode(sha256(id::text::bytea), 'hex'),
    'time', time, 'author', author, 'message', message, 'tags', tags, 'summary', json_build_object('delta_type', delta_type,
    'backbone_class', 'BertModel', 'backbone_hash', fingerprint, 'backbone_checkpoint_name', backbone, 'size', size,
    'parameters', parameters, 'metrics', json_build_object('accuracy', accuracy))))::text FROM made""",
    "INSERT INTO documents SELECT 'refs/' || name || '.json', '1', id FROM made",
    "INSERT INTO metrics SELECT 'accuracy', accuracy, id FROM made",
)


def build_postgres(catalogue: PostgresCatalogue, count: int, records: list[str]) -> None:
    """Fill a database; its indexes are made afterwards."""
    with catalogue._connection() as connection:
        indexes = connection.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND indexdef NOT LIKE '%UNIQUE%'"
        ).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {name}".encode())
        connection.execute(_MADE, [records, [*TASKS], [*METHODS], count])
        for statement in _COPIED:
            connection.execute(statement)
        connection.execute("DROP TABLE made")
        connection.execute("SET maintenance_work_mem = '1GB'")
        for _, definition in indexes:
            connection.execute(definition.encode())
        connection.execute("VACUUM ANALYZE")
        tables = PostgresTables(connection, "")
        tables.set_state("{}")
        tables.commit_count()


def keep_still(catalogue: Catalogue) -> None:
    """Store that the catalogue is up to date."""
    if isinstance(catalogue, PostgresCatalogue):
        with catalogue._connection() as connection:
            progress().store(PostgresTables(connection, ""))
        return
    assert isinstance(catalogue, Index)
    database = connect(catalogue.path)
    with database:
        progress().store(SqliteTables(database))
    database.close()


def questions(catalogue: Catalogue, count: int, backbone: Tensors) -> dict[str, Callable[[int], object]]:
    """Return searches, each of a number that chooses its values."""

    def search(query: Query, offset: int = 0) -> object:
        return catalogue.search(Search(query, 50, offset))

    return {
        "list: the newest, page n": lambda n: search(Query(), 50 * n),
        "list: by name, page n": lambda n: search(Query(sort="name"), 50 * n),
        "list: the largest": lambda n: search(Query(sort="size"), 50 * n),
        "search: the name of one delta": lambda n: search(Query(f"-{count - 7919 * n - 1}")),
        "search: a namespace and a task": lambda n: search(Query(f"team{n}/{TASKS[n % 8]}")),
        "search: no hit": lambda n: search(Query(f"nowhere{n}")),
        "search: a tag of 20 deltas": lambda n: search(Query(tags=(f"run={n}",))),
        "search: an author and a word": lambda n: search(Query(TASKS[n % 8], author=f"user{n}")),
        "search: a backbone and a metric": lambda n: search(
            Query(backbone=f"acme/bert-{n}", metrics=(Metric("accuracy", ">", 0.99),))
        ),
        "search: a tag of one in 8": lambda n: search(Query(tags=(f"task={TASKS[n % 8]}",))),
        "search: a word of one in 8": lambda n: search(Query(TASKS[n % 8])),
        "search: sorted by a metric": lambda n: search(Query(sort="accuracy"), 50 * n),
        "facets of all": lambda n: catalogue.facets(Query(), 8 + n % 2),
        "facets of an author": lambda n: catalogue.facets(Query(author=f"user{n}")),
        f"fits: half of {BACKBONES} backbones": lambda n: catalogue.search(Search(Query(), 50, 50 * n, backbone)),
    }


def measured(catalogue: Catalogue, count: int, backbone: Tensors) -> dict[str, list[float]]:
    """Time each search, first and repeated ones together, in ms."""
    times: dict[str, list[float]] = {}
    for name, ask in questions(catalogue, count, backbone).items():
        ask(ROUNDS)  # loads pages of the database
        for number in range(ROUNDS):
            start = time.perf_counter()
            ask(number)
            times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))
    return times


def p95(times: list[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(times, n=20)[-1]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deltas", type=int, default=1_000_000)
    parser.add_argument("--kinds", nargs="+", default=["sqlite", "postgres"])
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.keep or Path.cwd()) as name:
        place = asked.keep or Path(name)
        Path(name).chmod(0o755)
        registry = Registry(Still())
        data = [Fingerprint(leaves(number)).to_bytes() for number in range(BACKBONES)]
        records = [hashlib.sha256(record).hexdigest() for record in data]
        registry.store.create(dict(zip(records, data, strict=True)))
        import numpy as np
        from safetensors.numpy import save_file

        (Path(name) / "backbone").mkdir()
        save_file(
            {leaf.name: np.zeros(leaf.shape, np.float32) for leaf in leaves(0)},
            Path(name) / "backbone/model.safetensors",
        )
        backbone = backbone_tensors(Path(name) / "backbone")
        results = {}
        for kind in asked.kinds:
            start = time.perf_counter()
            server = None
            if kind == "postgres":
                server = new_postgres(Path(tempfile.mkdtemp(prefix="pg-")))
            catalogue = open_catalogue(registry, place / "catalogues", server.new_database() if server else None)
            if isinstance(catalogue, PostgresCatalogue):
                build_postgres(catalogue, asked.deltas, records)
            elif not (place / "catalogues").exists():
                build_sqlite(catalogue, asked.deltas, records)
            keep_still(catalogue)
            OUT.print(f"{kind}: built in {time.perf_counter() - start:.0f} s")
            results[kind] = measured(catalogue, asked.deltas, backbone)
            assert not catalogue.failure, catalogue.failure
            if server:
                server.stop()
        OUT.print(f"\n{asked.deltas:,} deltas, ms: median and 95th percentile of {ROUNDS}\n")
        OUT.print("| in process | " + " | ".join(f"{kind} | p95" for kind in results) + " |")
        OUT.print("| --- |" + " ---: |" * (2 * len(results)))
        for row in next(iter(results.values())):
            cells = [f"{statistics.median(times[row]):.1f} | {p95(times[row]):.1f}" for times in results.values()]
            OUT.print(f"| {row} | " + " | ".join(cells) + " |")
        for word in ("list", "search"):
            cells = [
                f"| {p95([t for row, ts in times.items() if row.startswith(word) for t in ts]):.1f}"
                for times in results.values()
            ]
            OUT.print(f"| all: {word} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
