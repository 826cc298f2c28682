"""Pushing and pulling a delta of 5 MB over a bucket of an S3 server on this machine, beside putting and getting the same files."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import obstore
import torch
from measure import interleaved, report
from transfer import new_delta

from deltahub.cache.cache import Cache
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.stores.bucket import Patience
from deltahub.stores.bucket_clients import connect
from deltahub.stores.bucket_store import BucketStore

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.s3_servers import ADMIN, Server, new_seaweed  # found by the line above

ROUNDS = 15


def measure(server: Server, root: Path) -> None:
    """Print the table."""
    files = {path.name: path.read_bytes() for path in (root / "ckpt").iterdir()}
    number = itertools.count()

    def put_prepared() -> Callable[[], object]:
        client = connect(server.bucket(), Patience())[1]
        return lambda: [obstore.put(client, name, data, use_multipart=False) for name, data in files.items()]

    def get_prepared() -> Callable[[], object]:
        bucket = server.bucket()
        reader, writer = connect(bucket, Patience())
        for name, data in files.items():
            obstore.put(writer, name, data, use_multipart=False)
        return lambda: [obstore.get(reader, name).bytes() for name in files]

    def new_hub() -> Hub:
        return Hub({"team": Registry(BucketStore(server.bucket()), "team")}, Cache(root / f"cache-{next(number)}"))

    def push_prepared() -> Callable[[], object]:
        hub = new_hub()
        return lambda: hub.push(root / "ckpt", "me/x")

    def pull_prepared() -> Callable[[], object]:
        hub = new_hub()
        hub.push(root / "ckpt", "me/x")
        return lambda: hub.pull(Reference.parse("me/x"))

    variants = {
        "obstore put": put_prepared,
        "deltahub push": push_prepared,
        "obstore get": get_prepared,
        "deltahub pull": pull_prepared,
    }
    times = interleaved(variants, ROUNDS, time.perf_counter)
    report("A delta of 5.2 MB over an S3 server, wall time", times, "obstore put")


def main() -> None:
    """Start a server and measure."""
    torch.manual_seed(0)
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = ADMIN
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, new_seaweed() as server:
        new_delta(Path(name) / "ckpt")
        measure(server, Path(name))


if __name__ == "__main__":
    main()
