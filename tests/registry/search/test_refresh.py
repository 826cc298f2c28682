"""The index looks again at what may have changed, and at nothing else; whatever the disk's clock does, no change is missed."""

from __future__ import annotations

import pytest

from deltahub.registry.edits import set_tags
from deltahub.registry.search import refresh
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Index
from deltahub.stores.folder_stamps import TICK


class Clock:
    """The time of this machine."""

    def __init__(self) -> None:
        self.now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(refresh, "time", clock)
    return clock


@pytest.fixture
def index(registry, tmp_path) -> Index:
    return Index(tmp_path / "cache" / "index.sqlite3", registry)


@pytest.fixture
def listed(registry, monkeypatch) -> list[str]:
    """The folders that are listed."""
    found, keys = [], registry.store.keys
    monkeypatch.setattr(registry.store, "keys", lambda prefix: found.append(prefix) or keys(prefix))
    return found


def names(index, **query) -> list[str]:
    return sorted(line.name for line in index.search(Search(Query(**query)))[0])


def settle(index, clock, listed) -> None:
    """Until all folders are passed over."""
    for _ in range(3):
        names(index)
        clock.now += TICK
    listed.clear()


def test_a_folder_that_did_not_change_is_not_listed_again(registry, publish, index, clock, listed):
    publish(registry, "acme/ner")
    publish(registry, "zoo/ner")
    settle(index, clock, listed)
    assert names(index) == ["acme/ner", "zoo/ner"]
    assert listed == []

    publish(registry, "zoo/nli")
    listed.clear()
    assert names(index) == ["acme/ner", "zoo/ner", "zoo/nli"]
    assert listed == ["refs/zoo/"]


def test_a_change_within_the_same_tick_of_the_disks_clock_is_seen(registry, publish, index, clock, listed):
    folder = registry.store.root / "refs/acme"
    publish(registry, "acme/ner")
    stamp = registry.store.folder_stamp
    frozen = stamp("refs/acme/")
    registry.store.folder_stamp = lambda asked: frozen if asked == "refs/acme/" else stamp(asked)
    for number, step in enumerate((0.0, 0.5, 1.4)):  # the disk's clock stands still for two seconds at most
        clock.now += step
        names(index)
        publish(registry, f"acme/d{number}")
        assert f"acme/d{number}" in names(index)
    clock.now += TICK
    assert len(names(index)) == 4
    listed.clear()
    assert len(names(index)) == 4
    assert listed == []
    assert folder.is_dir()


def test_a_clock_that_goes_back_hides_nothing(registry, publish, index, clock, listed):
    publish(registry, "acme/ner")
    settle(index, clock, listed)
    clock.now -= 1e6
    names(index)
    assert listed == ["refs/acme/"]


def test_a_change_by_hand_within_a_file_is_seen_in_the_end(registry, publish, index, clock, listed):
    publish(registry, "acme/ner", tags=["old"])
    settle(index, clock, listed)
    path = registry.store.root / "refs/acme/ner.json"
    stamp = path.parent.stat().st_mtime_ns
    path.write_bytes(registry.document("acme/ner").with_tags("v1", ["new"], ["old"], "now", "ada").to_bytes())
    assert path.parent.stat().st_mtime_ns == stamp
    clock.now += refresh.TRUST
    assert names(index, tags=("new",)) == ["acme/ner"]


def test_a_folder_with_a_document_that_cannot_be_read_is_looked_at_each_time(
    registry, publish, index, clock, listed, caplog
):
    publish(registry, "acme/ner")
    publish(registry, "acme/nli")
    path = registry.store.root / "refs/acme/ner.json"
    data = path.read_bytes()
    path.write_bytes(b"{")
    settle(index, clock, listed)
    caplog.clear()
    assert names(index) == ["acme/nli"]
    assert "refs/acme/ner.json cannot be listed" in caplog.text
    path.write_bytes(data)
    assert names(index) == ["acme/ner", "acme/nli"]


def test_a_namespace_that_is_gone_is_forgotten(registry, publish, index, clock, listed):
    publish(registry, "acme/ner")
    publish(registry, "zoo/ner")
    settle(index, clock, listed)
    (registry.store.root / "refs/zoo/ner.json").unlink()
    (registry.store.root / "refs/zoo").rmdir()
    assert names(index) == ["acme/ner"]


def test_over_any_store_only_changed_documents_are_read_again(anywhere, publish, tmp_path, monkeypatch):
    publish(anywhere, "acme/ner")
    publish(anywhere, "zoo/ner")
    index = Index(tmp_path / "index.sqlite3", anywhere)
    names(index)
    set_tags(anywhere, "zoo/ner", None, ["best"], [])
    read, read_tagged = [], anywhere.store.read_tagged
    monkeypatch.setattr(anywhere.store, "read_tagged", lambda key: read.append(key) or read_tagged(key))
    assert names(index, tags=("best",)) == ["zoo/ner"]
    assert read == ["refs/zoo/ner.json"]
