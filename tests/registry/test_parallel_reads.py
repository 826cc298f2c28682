"""Over a network, reads do not wait for each other: a search, a collection and a mirror ask for many things at once."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from deltahub.registry.gc import collect
from deltahub.registry.mirror import copy
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Index
from deltahub.stores.memory import MemoryStore

COUNT = 6


class Distant(MemoryStore):
    """A store whose answers come only when as many are asked for as can be at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting: threading.Barrier | None = None

    @property
    def at_once(self) -> int:
        return COUNT

    def read_tagged(self, key):
        if self.meeting and key.startswith("refs/"):
            self.meeting.wait(timeout=30)  # breaks, and fails the test, if they come one after the other
        return super().read_tagged(key)


@pytest.fixture
def distant(publish) -> Registry:
    registry = Registry(Distant())
    for number in range(COUNT):
        publish(registry, f"acme/d{number}", number)
    registry.store.meeting = threading.Barrier(COUNT)
    return registry


def test_a_search_reads_all_changed_documents_at_once(distant, tmp_path):
    lines, total = Index(tmp_path / "index.sqlite3", distant).search(Search(Query(sort="name")))
    assert ([line.name for line in lines], total) == ([f"acme/d{number}" for number in range(COUNT)], COUNT)


def test_a_collection_reads_all_documents_at_once(distant):
    assert collect(distant, timedelta()).freed == {}


def test_a_mirror_reads_several_deltas_at_once_and_gives_them_in_their_order(distant):
    target = Registry(MemoryStore(), "copy")
    done = list(copy(distant, target))
    assert [it.name for it in done] == [f"acme/d{number}" for number in range(COUNT)]
    distant.store.meeting = None
    for prefix in ("objects/", "refs/"):
        assert dict(target.store.keys(prefix)) == dict(distant.store.keys(prefix))
