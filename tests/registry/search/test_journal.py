"""The journal of a bucket: a search lists what is new instead of everything, and misses nothing, whoever wrote or died before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from deltahub.errors import StorageError, UnreachableError
from deltahub.reference import DeltaPath, Digest, Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import set_alias
from deltahub.registry.entries import Version
from deltahub.registry.journal import entries
from deltahub.registry.journal.snapshot import HEAD, PARTS, read_head
from deltahub.registry.registry import Registry, ref_key
from deltahub.registry.rename import rename
from deltahub.registry.search import from_journal
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Index
from deltahub.stores.memory import MemoryStore


class Requests(MemoryStore):
    """A bucket that counts its requests and can refuse writes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.refuses: str | None = None
        self.error: type[StorageError] = StorageError

    def read_tagged(self, key):
        self.asked.append(f"GET {key}")
        return super().read_tagged(key)

    def read(self, key):
        self.asked.append(f"GET {key}")
        return super().read(key)

    def keys(self, prefix) -> Iterator[tuple[str, str]]:
        self.asked.append(f"LIST {prefix}")
        return super().keys(prefix)

    def swap(self, key, data, expected):
        if self.refuses is not None and key.startswith(self.refuses):
            msg = "403"
            raise self.error(msg)
        return super().swap(key, data, expected)


class Clock:
    """The time of this machine."""

    now = 1e9

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(from_journal, "time", clock)
    return clock


@pytest.fixture
def store() -> Requests:
    return Requests()


@pytest.fixture
def bucket(store, monkeypatch, clock) -> Registry:
    """An empty registry; three documents or entries are many."""
    monkeypatch.setattr(from_journal, "SMALL", 2)
    monkeypatch.setattr(from_journal, "LONG", 3)
    return Registry(store)


@pytest.fixture
def new_index(bucket, tmp_path):
    """Makes catalogues of the registry, each of another machine."""
    return lambda name="index": Index(tmp_path / f"{name}.sqlite3", bucket)


def push(registry: Registry, name: str, message: str = "") -> None:
    """Add a version."""

    def change(document: ReferenceDocument) -> ReferenceDocument:
        digest = Digest.of(f"{name} {len(document.log)}".encode())
        return document.with_version(
            Version(digest, registry.stamp()[0], "ada", message, (), {"backbone_record": None})
        )[0]

    registry.update(DeltaPath(name), change, may_create=True)


def fill(registry: Registry, count: int = 4) -> None:
    for number in range(count):
        push(registry, f"acme/d{number}")


def shown(index: Index) -> dict[str, str]:
    """What a search finds: each delta with its newest version and its champion."""
    lines, _ = index.search(Search(Query(sort="name")))
    return {line.name: f"{line.version} {line.aliases.get('champion')}" for line in lines}


def truth(registry: Registry) -> dict[str, str]:
    documents = filter(None, map(registry.stored, registry.names()))
    return {it.name: f"{it.latest} {it.aliases.get('champion')}" for it in documents if it.versions}


def asked(index: Index, store: Requests) -> list[str]:
    """The requests of a search."""
    store.asked.clear()
    shown(index)
    return list(store.asked)


def test_a_search_lists_what_is_new_and_reads_only_that(bucket, store, new_index):
    fill(bucket)
    index = new_index()
    shown(index)
    asked(index, store)  # it has seen its own snapshot
    assert asked(index, store) == ["LIST journal/"]

    set_alias(bucket, "acme/d1", "champion", "v1")
    assert asked(index, store) == ["LIST journal/", "GET refs/acme/d1.json"]
    assert shown(index)["acme/d1"] == "v1 v1"
    assert asked(index, store) == ["LIST journal/"]


def test_a_new_reader_takes_over_the_snapshot_and_reads_no_document_in_it(bucket, store, new_index):
    fill(bucket)
    shown(new_index())
    push(bucket, "acme/d9")
    requests = asked(new_index("other"), store)
    assert [it for it in requests if "refs/" in it] == ["GET refs/acme/d9.json"]
    assert shown(new_index("other")) == truth(bucket)


def test_a_small_registry_is_listed_and_nothing_is_written_by_a_search(bucket, store, new_index):
    fill(bucket, 2)
    store.refuses = ""
    assert shown(new_index()) == truth(bucket)
    assert asked(new_index(), store) == ["LIST journal/", "LIST refs/"]


def test_a_long_journal_is_folded_and_its_entries_go_a_generation_later(bucket, store, new_index):
    fill(bucket)
    index = new_index()
    shown(index)
    for generation in (2, 3, 4):
        for number in range(3):
            push(bucket, f"acme/d{number}")
        shown(index)
        head, _ = read_head(store)
        assert head.generation == generation
        listed = {key for key, _ in store.keys(entries.NEW)}
        assert head.covered == listed
        assert len(listed) == 3
    assert len(list(store.keys(PARTS))) <= 4


def test_a_change_without_an_entry_is_found_by_the_next_full_listing_and_by_all(bucket, store, new_index, clock):
    fill(bucket)
    index, other = new_index(), new_index("other")
    shown(index), shown(other)
    document, etag = bucket.read("acme/d1")
    changed = document.with_alias("champion", "v1", "2026-01-02T03:04:05Z", "ada")
    store.swap(ref_key("acme/d1"), changed.to_bytes(), etag)  # by an older deltahub, or by one that was killed here
    assert shown(index)["acme/d1"] == "v1 None"

    clock.now += from_journal.RELISTED
    assert shown(index) == truth(bucket)
    assert "LIST refs/" not in asked(other, store)
    assert shown(other) == shown(new_index("fresh")) == truth(bucket)


@pytest.mark.parametrize("prefix", ["journal/", HEAD, PARTS, entries.NEW])
def test_deleting_any_of_it_loses_nothing(bucket, store, new_index, prefix, clock):
    fill(bucket)
    index = new_index()
    shown(index)
    set_alias(bucket, "acme/d1", "champion", "v1")
    if prefix == entries.NEW:  # the one case in which the change is found later
        clock.now += from_journal.RELISTED
    for key, _ in list(store.keys(prefix)):
        store.delete(key)
    assert shown(index) == shown(new_index("fresh")) == truth(bucket)
    assert shown(new_index("another")) == truth(bucket)
    head, _ = read_head(store)
    assert all(store.size(part.key) for part in head.parts)


@pytest.mark.parametrize("place", [HEAD, PARTS])
def test_a_damaged_snapshot_is_not_used_and_made_anew(bucket, store, new_index, place):
    fill(bucket)
    shown(new_index())
    for key, etag in list(store.keys(place)):
        store.swap(key, b"{}", etag)
    assert shown(new_index("fresh")) == truth(bucket)
    assert not [it for it in asked(new_index("next"), store) if "refs/" in it]


def test_keys_that_are_not_entries_are_ignored(bucket, store, new_index):
    fill(bucket)
    index = new_index()
    shown(index)
    for name in ("x", "20260101T000000000-1=..=x", "a=b=c=d", "2026-1=acme=missing"):
        store.swap(f"{entries.NEW}{name}", b"", None)
    assert shown(index) == shown(new_index("fresh")) == truth(bucket)


def test_a_store_that_refuses_the_snapshot_is_searched_without_one(bucket, store, new_index, clock):
    fill(bucket)
    store.refuses = "journal/"
    index = new_index()
    assert shown(index) == shown(index) == truth(bucket)
    store.refuses = None
    clock.now += from_journal.RELISTED
    shown(index)
    assert read_head(store)[0] is not None


def test_a_store_that_refuses_entries_takes_the_change_and_says_so(bucket, store, caplog):
    store.refuses = "journal/"
    push(bucket, "acme/d1")
    assert "searches may not find it for some hours" in caplog.text


def test_a_change_whose_entry_was_cut_off_is_not_acknowledged_and_repeating_it_adds_the_entry(bucket, store, new_index):
    fill(bucket)
    index = new_index()
    shown(index)
    store.refuses, store.error = "journal/", UnreachableError
    with pytest.raises(UnreachableError):
        set_alias(bucket, "acme/d1", "champion", "v1")
    store.refuses = None
    assert shown(index)["acme/d1"] == "v1 None"
    set_alias(bucket, "acme/d1", "champion", "v1")
    assert shown(index)["acme/d1"] == "v1 v1"


def test_a_damaged_document_is_looked_at_each_time_and_hides_no_other(bucket, store, new_index, caplog):
    fill(bucket)
    index = new_index()
    shown(index)
    data, etag = store.read_tagged(ref_key("acme/d1"))
    etag = store.swap(ref_key("acme/d1"), b"{", etag)
    entries.record(store, ["acme/d1"])
    for number in range(3):
        push(bucket, f"acme/d{number + 2}")
    for each in (index, index, new_index("fresh"), new_index("fresh")):
        caplog.clear()
        assert sorted(shown(each)) == ["acme/d0", "acme/d2", "acme/d3", "acme/d4"]
        assert "refs/acme/d1.json cannot be listed" in caplog.text
    store.swap(ref_key("acme/d1"), data, etag)
    assert shown(index) == shown(new_index("fresh")) == truth(bucket)


class Sequences:
    """Random changes and readers; some readers stay away for long, and no clock of a writer is right."""

    def __init__(self, registry: Registry, folder: Path, seed: int) -> None:
        self.registry, self.folder, self.random = registry, folder, random.Random(seed)
        self.indexes = [Index(folder / f"{number}.sqlite3", registry) for number in range(3)]
        self.renamed = 0

    def change(self) -> None:
        registry, number = self.registry, self.random.randrange(8)
        push(registry, f"acme/d{number}") if self.random.random() < 0.5 or f"acme/d{number}" not in truth(
            registry
        ) else set_alias(registry, f"acme/d{number}", "champion", f"v{self.random.randint(1, 1)}")
        if self.random.random() < 0.1:
            self.renamed += 1
            name = self.random.choice(sorted(truth(registry)))
            rename(registry, Reference.parse(name), Reference.parse(f"acme/r{self.renamed}"))

    def run(self, steps: int) -> None:
        for _ in range(steps):
            for _ in range(self.random.randrange(4)):
                self.change()
            which = self.random.choice([0, 0, 0, 0, 1, 1, 2, 3])
            if which == 3:
                Path(self.indexes[2].path).unlink(missing_ok=True)
                which = 2
            assert shown(self.indexes[which]) == truth(self.registry)


@pytest.mark.parametrize("seed", range(4))
def test_no_reader_misses_a_change_however_long_it_was_away_and_whatever_the_clocks_say(
    bucket, tmp_path, monkeypatch, seed
):
    monkeypatch.setattr(from_journal, "_MOST", 4)
    shuffled = random.Random(seed)
    make = entries.entry_key
    monkeypatch.setattr(entries, "entry_key", lambda time, path: make(f"{shuffled.randrange(10**9)}", path))
    Sequences(bucket, tmp_path, seed).run(40)


def test_two_readers_that_fold_at_once_keep_one_snapshot(bucket, store, new_index, monkeypatch):
    fill(bucket)
    first, second = new_index("a"), new_index("b")
    fold = from_journal.publish_head
    turns = iter([partial(shown, second)])

    def publish(*args, **options):
        for turn in turns:
            turn()
        return fold(*args, **options)

    monkeypatch.setattr(from_journal, "publish_head", publish)
    assert shown(first) == truth(bucket)
    head, _ = read_head(store)
    assert {key for key, _ in store.keys(PARTS)} == {part.key for part in head.parts}
    assert shown(new_index("c")) == truth(bucket)
