"""A bucket from which somebody is cut off for good at any request: the change is done or not, and the next one can repeat it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace

import obstore
import pytest

from deltahub.errors import StorageError
from deltahub.registry.journal.snapshot import HEAD
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Index
from deltahub.stores.bucket import Bucket
from deltahub.stores.bucket_clients import connect
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.memory import MemoryStore
from deltahub.stores.probe import refuse_weak
from tests.faults.actions import ACTIONS, State, between, damage_of, state_of
from tests.s3_proxy import Exchange, Fault, Proxy, lose, proxied, reset
from tests.s3_servers import QUICK

ALL = (
    "DELTAHUB_FAULTS_ALL" in os.environ
)  # every action at every request; else some of those that write, where they write
SOME = (("push", False), ("push", True), ("alias", True), ("rename", False), ("gc", True), ("import", False))
ONCE = replace(QUICK, retries=0, total=1)


@dataclass
class Outage:
    """Nothing gets through from one request on; that one may be carried out, but its answer is lost.

    Attributes:
        at: which, counted from 1; 0 for none.
        carried_out: whether it is.
        count: the requests so far.
    """

    at: int = 0
    carried_out: bool = False
    count: int = 0
    fault: Fault = field(default=reset)

    def meets(self, exchange: Exchange) -> bool:
        """Whether this one does not get through."""
        self.count += ALL or exchange.method not in ("GET", "HEAD")
        self.fault = lose if self.carried_out and self.count == self.at else reset
        return bool(self.at) and self.count >= self.at


@pytest.fixture
def filled(world) -> MemoryStore:
    """What is in the registry at first."""
    store = MemoryStore()
    world.fill(store)
    return store


def fill(bucket: Bucket, filled: MemoryStore) -> Registry:
    """Put it into a bucket."""
    client = connect(bucket, QUICK)[1]
    for key in (key for key, _ in filled.keys("") if not key.startswith("journal/")):
        obstore.put(client, key, filled.read(key), use_multipart=False)
    return Registry(BucketStore(bucket, QUICK))


def behind(proxy: Proxy, outage: Outage, bucket: Bucket) -> Registry:
    """The registry in the bucket by a way that has an outage; the server is known to be a good one."""
    store = BucketStore(replace(bucket, endpoint=proxy.url), ONCE)
    refuse_weak(store._writer, store.bucket)
    proxy.rules[:] = [outage]
    return Registry(store)


def listed_in(state: State) -> set[tuple]:
    """What a list says of a state."""
    documents = [document for document in state.values() if document.versions]
    newest = [(it, it.latest, it.versions[it.latest]) for it in documents]
    return {(it.name, version, *entry.tags, *it.aliases.items()) for it, version, entry in newest}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "carried_out"),
    list(itertools.product(ACTIONS, [False, True])) if ALL else SOME,
    ids=lambda value: value if isinstance(value, str) else "carried out" if value else "not carried out",
)
def test_a_connection_lost_at_any_request_leaves_the_old_state_or_the_new_one(
    s3, proxy, world, filled, action, carried_out, tmp_path, monkeypatch
):
    """What is acknowledged is also found by a reader of the journal that had searched before."""
    monkeypatch.setattr("deltahub.registry.search.from_journal.SMALL", 0)
    act = ACTIONS[action]
    indexes = (tmp_path / f"{number}.sqlite3" for number in itertools.count())

    def found_by(index):
        assert index.registry.store.read_tagged(HEAD)
        return {(line.name, line.version, *line.tags, *line.aliases.items()) for line in index.search(Search())[0]}

    def prepare(outage):
        bucket = s3.bucket()
        registry = fill(bucket, filled)
        return registry, behind(proxy, outage, bucket)

    outage = Outage()
    registry, cut_off = prepare(outage)
    before = state_of(registry)
    act(cut_off, world)
    after = state_of(registry)
    refused = 0
    for request in range(1, outage.count + 1):
        registry, cut_off = prepare(Outage(request, carried_out))
        index, done = Index(next(indexes), registry), False
        if reads := action != "gc":  # which changes no document
            index.refresh()
        try:
            act(cut_off, world)
            done = True
        except StorageError:
            refused += 1
        found = state_of(registry)
        assert found in ([after] if done else between(action, before, after)), request
        assert not damage_of(registry), request
        if action == "gc" or found != after:
            act(registry, world)
            assert state_of(registry) == after, request
            assert not damage_of(registry), request
            done = True
        assert not (done and reads) or found_by(index) == listed_in(after), request
    assert refused


PROGRAM = """
import sys
from pathlib import Path
from deltahub.checkpoint import checkpoint
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.journal.snapshot import HEAD
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Index
from deltahub.stores.bucket import Bucket
from deltahub.stores.bucket_store import BucketStore
name, prefix, endpoint, folder = sys.argv[1:]
registry = Registry(BucketStore(Bucket(name, prefix, endpoint)))
print("ready", flush=True)
publish(registry, Publication(Reference.parse("acme/ner"), checkpoint.describe(Path(folder)), Path(folder)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", ["/objects/", "/refs/"])
@pytest.mark.parametrize("kind", ["moto", "seaweed"])
def test_a_process_that_is_killed_while_a_request_is_on_its_way_can_be_followed_by_another(
    request, s3_keys, world, filled, kind, words
):
    server = request.getfixturevalue(kind)
    bucket = server.bucket()
    registry = fill(bucket, filled)
    before = state_of(registry)
    with proxied(server.url) as proxy:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, bucket.name, bucket.prefix, proxy.url, str(world.folders[3])],
            stdout=subprocess.PIPE,
        )
        killed = []

        def kill(exchange: Exchange) -> None:
            process.kill()
            killed.append(exchange.path)
            exchange.forward()

        proxy.breaks(kill, words=words)
        output, _ = process.communicate(timeout=60)
    assert (output, process.returncode, len(killed)) == (b"ready\n", -9, 1)
    found = state_of(registry)
    assert len(found["acme/ner"].versions) == (3 if words == "/refs/" else 2)
    assert found == before or words == "/refs/"
    assert not damage_of(registry)
    world.push(registry, 3)
    assert len(state_of(registry)["acme/ner"].versions) == 3
    assert not damage_of(registry)
