"""A registry in a bucket at the end of a slow line: what each thing takes, one request after the other and several at once.

    python benchmarks/registry_line.py [--deltas 100] [--delay 30]

The server is moto on this machine; a proxy holds up every request, so that the times are those of the line. The requests are
counted too: they are what S3 bills.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from measure import OUT
from registry_many import small_deltas

from deltahub.checkpoint import checkpoint
from deltahub.reference import Reference
from deltahub.registry.edits import set_alias
from deltahub.registry.gc import collect
from deltahub.registry.mirror import copy
from deltahub.registry.publish import Publication, publish, publish_many
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Index
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.memory import MemoryStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.s3_proxy import Exchange, Proxy, proxied  # found by the line above
from tests.s3_servers import ADMIN, new_moto


class OneByOne(BucketStore):
    """A store whose requests wait for each other, but for those of one push."""

    @property
    def at_once(self) -> int:
        """One."""
        return 1


def hold(exchange: Exchange, seconds: float) -> None:
    """Answer as late as a server that is far away."""
    time.sleep(seconds)
    exchange.respond(*exchange.forward())


class Line:
    """Measures over a line.

    Args:
        proxy: between here and the server.
    """

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.rows = ["| over the line | s | GET | PUT | LIST | DELETE |", "| --- | ---: | ---: | ---: | ---: | ---: |"]

    def measure(self, what: str, call: Callable[[], object]) -> None:
        """Time a call, and count its requests."""
        self._proxy.requests.clear()
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        kinds = Counter(
            "LIST" if method == "GET" and "list-type" in path else method for method, path in self._proxy.requests
        )
        counts = [kinds["GET"] + kinds["HEAD"], kinds["PUT"] + kinds["POST"], kinds["LIST"], kinds["DELETE"]]
        self.rows.append(f"| {what} | {took:.2f} | " + " | ".join(map(str, counts)) + " |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--deltas", type=int, default=100)
    parser.add_argument("--delay", type=float, default=30.0, help="milliseconds")
    asked = parser.parse_args()
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = ADMIN
    with tempfile.TemporaryDirectory() as name, new_moto(Path(name)) as server, proxied(server.url) as proxy:
        root = Path(name)
        folders = small_deltas(root / "runs", asked.deltas + 2)
        made = [Publication(Reference.parse(f"acme/{it.name}"), checkpoint.describe(it), it) for it in folders]
        line = Line(proxy)
        for method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
            proxy.breaks(functools.partial(hold, seconds=asked.delay / 1000), method=method, times=None)
        bucket = server.bucket(endpoint=proxy.url)
        many, single = Registry(BucketStore(bucket)), Registry(OneByOne(bucket))
        many.store.keys("refs/")  # the first request makes the connections
        first, last = made[-2:]
        publish(many, Publication(first.reference, first.manifest, first.folder))
        line.measure(f"{asked.deltas} deltas pushed in one call", lambda: publish_many(many, made[:-2]))
        line.measure("one delta pushed", lambda: publish(many, Publication(last.reference, last.manifest, last.folder)))
        line.measure("an alias moved", lambda: set_alias(many, first.reference.path, "champion", "v1"))
        line.measure("first search, one by one", lambda: Index(root / "a.sqlite3", single).search(Search()))
        line.measure("first search", lambda: Index(root / "b.sqlite3", many).search(Search()))
        line.measure("next search", lambda: Index(root / "b.sqlite3", many).search(Search()))
        line.measure("collection, one by one", lambda: collect(single, timedelta(), dry_run=True))
        line.measure("collection", lambda: collect(many, timedelta(), dry_run=True))
        line.measure("mirror into memory, one by one", lambda: list(copy(single, Registry(MemoryStore()))))
        line.measure("mirror into memory", lambda: list(copy(many, Registry(MemoryStore()))))
        OUT.print("\n".join([f"{asked.deltas} deltas, {asked.delay:g} ms a request", "", *line.rows, ""]))


if __name__ == "__main__":
    main()
