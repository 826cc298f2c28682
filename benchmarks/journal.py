"""Searches over a bucket of 100,000 deltas with 30 ms a request: the requests and the time of a new reader and of one that was there before.

    python benchmarks/journal.py [--deltas 100000] [--delay 30]

The bucket is SeaweedFS on this machine, behind a proxy that holds up every request. The snapshot is written as a reader of all documents
writes it; the documents in it are left out, as no search reads them.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from catalogue import entry
from measure import OUT
from registry_line import Line, hold

from deltahub.reference import DeltaPath, Digest
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import set_alias
from deltahub.registry.entries import Version
from deltahub.registry.journal.snapshot import publish_head
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Index
from deltahub.stores.bucket_store import BucketStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.s3_proxy import proxied  # found by the line above
from tests.s3_servers import ADMIN, new_seaweed


def push(registry: Registry, name: str) -> None:
    """Add a delta, without its objects."""

    def change(document: ReferenceDocument) -> ReferenceDocument:
        version = Version(Digest.of(name.encode()), registry.stamp()[0], "ada", "", (), {"backbone_record": None})
        return document.with_version(version)[0]

    registry.update(DeltaPath(name), change, may_create=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deltas", type=int, default=100_000)
    parser.add_argument("--delay", type=float, default=30.0, help="milliseconds")
    asked = parser.parse_args()
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = ADMIN
    with tempfile.TemporaryDirectory() as name, new_seaweed() as server, proxied(server.url) as proxy:
        bucket = server.bucket()
        near = BucketStore(bucket)
        made = (entry(number, [""] * 40) for number in range(asked.deltas))
        lines = ({"path": it.name, "stamp": "1", "entry": it.to_dict()} for it in made)
        publish_head(near, None, None, lines, [], time.time(), [], whole=True)
        for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
            proxy.breaks(functools.partial(hold, seconds=asked.delay / 1000), method=method, times=None)
        registry = Registry(BucketStore(replace(bucket, endpoint=proxy.url)))
        index = Index(Path(name) / "a.sqlite3", registry)
        line = Line(proxy)
        line.measure("first search of a new reader", lambda: index.search(Search(limit=50)))
        push(registry, "acme/first")  # makes the connections for writing
        index.search(Search(limit=50))
        for number in range(3):
            line.measure("search, nothing changed", lambda n=number: index.search(Search(Query(f"-{n}77"), 50)))
        line.measure("a new delta", lambda: push(registry, "acme/new"))
        line.measure("search, one change", lambda: index.search(Search(Query("acme/new"), 50)))
        line.measure("an alias moved", lambda: set_alias(registry, DeltaPath("acme/new"), "champion", "v1"))
        line.measure("search, one change", lambda: index.search(Search(limit=50)))
        OUT.print("\n".join([f"{asked.deltas:,} deltas, {asked.delay:g} ms a request", "", *line.rows, ""]))


if __name__ == "__main__":
    main()
