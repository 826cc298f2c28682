"""Many documents at once: each is replaced or not, whatever becomes of the others, and a crash leaves each old or new."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading

import pytest

from deltahub.errors import ConflictError, StorageError
from deltahub.files import durable
from deltahub.stores.base import Swap, object_key
from deltahub.stores.local import LocalStore
from tests.checkpoints import content_of
from tests.faults import FORBIDDEN, FULL, INTERRUPT
from tests.faults.disk import write_tree

KEYS = [f"refs/{name}.json" for name in ("acme/a", "acme/b", "zoo/a")]


@pytest.fixture(params=["whole", "each"])
def together(request, monkeypatch) -> None:
    """Few files count as many, or many as few."""
    monkeypatch.setattr(durable, "MANY", 2 if request.param == "whole" else 10**9)


def test_many_documents_are_replaced_at_once(store):
    first = store.swap_all([Swap(key, b"1", None) for key in KEYS])
    assert [store.read_tagged(key) for key in KEYS] == [(b"1", etag) for etag in first]
    second = store.swap_all([Swap(key, b"2", etag) for key, etag in zip(KEYS, first, strict=True)])
    assert [store.read_tagged(key) for key in KEYS] == [(b"2", etag) for etag in second]
    assert store.swap_all([]) == []


def test_a_concurrently_changed_document_does_not_block_the_others(store):
    etags = store.swap_all([Swap(key, b"1", None) for key in KEYS])
    theirs = store.swap(KEYS[1], b"theirs", etags[1])
    done = store.swap_all([Swap(key, b"2", etag) for key, etag in zip(KEYS, etags, strict=True)])

    assert isinstance(done[1], ConflictError)
    assert (done[1].what, done[1].expected, done[1].found) == (KEYS[1], etags[1], theirs)
    assert [store.read(key) for key in KEYS] == [b"2", b"theirs", b"2"]
    assert [store.read_tagged(key)[1] for key in KEYS] == [done[0], theirs, done[2]]


def test_of_batches_at_the_same_time_each_document_takes_one(store):
    keys = [f"refs/acme/d{number}.json" for number in range(8)]
    start, done = threading.Barrier(3), {}

    def work(me: int) -> None:
        start.wait()
        order = keys if me else keys[::-1]
        done[me] = dict(zip(order, store.swap_all([Swap(key, b"by %d" % me, None) for key in order]), strict=True))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in keys:
        (winner,) = (me for me in range(3) if isinstance(done[me][key], str))
        assert store.read_tagged(key) == (b"by %d" % winner, done[winner][key])


def test_children_are_the_keys_and_the_folders_directly_in_a_folder(store):
    for key in (*KEYS, "refs/acme/deep/x.json", "refs/top.json"):
        store.swap(key, b"1", None)

    assert sorted(store.children("refs/")) == ["acme/", "top.json", "zoo/"]
    assert sorted(store.children("refs/acme/")) == ["a.json", "b.json", "deep/"]
    assert store.children("refs/nobody/") == []


def test_a_folders_stamp_is_another_one_after_every_change_or_there_is_none(store):
    assert store.folder_stamp("refs/acme/") is None
    etag = store.swap(KEYS[0], b"1", None)
    stamps = [store.folder_stamp("refs/acme/")]
    for change in (
        lambda: store.swap(KEYS[0], b"2", etag),
        lambda: store.swap_all([Swap(KEYS[1], b"1", None)]),
        lambda: store.delete(KEYS[0]),
    ):
        if isinstance(store, LocalStore):  # as if the clock had moved on
            os.utime(store.root / "refs/acme", (1, 1))
        stamps.append(store.folder_stamp("refs/acme/"))
        change()
        stamps.append(store.folder_stamp("refs/acme/"))
    assert set(stamps) == {None} or len(set(stamps)) == len(stamps)


def test_an_empty_place_has_no_children(store):
    assert store.children("refs/") == []


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_batch_that_fails_at_any_step_leaves_each_document_old_or_new(tmp_path, faults, error):
    keys = KEYS[:2]

    def prepare(case):
        store = LocalStore(tmp_path / case)
        return store, [Swap(key, b"new", etag) for key, etag in zip(keys, old(store), strict=True)]

    def old(store):
        return store.swap_all([Swap(key, b"old", None) for key in keys])

    store, swaps = prepare("count")
    steps = faults.count(lambda: store.swap_all(swaps))
    for case, step, failure in faults.each(steps, error):
        store, swaps = prepare(case)
        done = None
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            done = store.swap_all(swaps)
        found = [store.read(key) for key in keys]
        assert set(found) <= {b"old", b"new"}, case
        if done:  # what it says is what is
            assert [isinstance(etag, str) for etag in done] == [data == b"new" for data in found], case
        again = store.swap_all([Swap(key, b"newer", store.read_tagged(key)[1]) for key in keys])
        assert all(isinstance(etag, str) for etag in again), case
        assert [store.read(key) for key in keys] == [b"newer", b"newer"], case


@pytest.mark.slow
@pytest.mark.usefixtures("together")
def test_a_batch_that_is_killed_at_any_step_leaves_each_document_old_or_new_and_in_nobodys_way(
    tmp_path, faults, monkeypatch
):
    monkeypatch.setattr("deltahub.stores.local_files.SILENT", 0.0)
    keys = KEYS[:2]

    def swaps(store, data):
        tagged = [store.read_tagged(key) for key in keys]
        return [Swap(key, data, found[1] if found else None) for key, found in zip(keys, tagged, strict=True)]

    def prepare(case):
        store = LocalStore(tmp_path / case)
        store.swap_all(swaps(store, b"old"))
        return store, swaps(store, b"new")

    store, prepared = prepare("whole")
    left = faults.killed(store.root, lambda: store.swap_all(prepared))
    for step, tree in left:
        write_tree(tree, tmp_path / f"{step}")
        store = LocalStore(tmp_path / f"{step}")
        assert {store.read(key) for key in keys} <= {b"old", b"new"}, step
        assert all(isinstance(etag, str) for etag in store.swap_all(swaps(store, b"newer"))), step
        assert [store.read(key) for key in keys] == [b"newer", b"newer"], step


@pytest.mark.slow
@pytest.mark.usefixtures("together")
@pytest.mark.parametrize("error", [FULL, INTERRUPT], ids=["full", "interrupted"])
def test_many_objects_whose_storing_fails_at_any_step_are_whole_or_not_there(tmp_path, faults, error):
    sources = {hashlib.sha256(data).hexdigest(): data for data in (b"weights", b"card", b"record")}
    steps = faults.count(lambda: LocalStore(tmp_path / "count").create(sources))
    for case, step, failure in faults.each(steps, error):
        store = LocalStore(tmp_path / case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            store.create(sources)
        for key, data in content_of(store.root).items():
            assert key.startswith("objects/"), case
            assert data == sources["".join(key.split("/")[2:])], case
        store.create(sources)
        assert {store.read(object_key(sha256)) for sha256 in sources} == set(sources.values()), case


def test_many_files_are_synced_by_one_call_where_that_is_known_to_reach_the_disk(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(durable, "MANY", 2)
    monkeypatch.setattr(durable, "syncfs", calls.append)
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    store = LocalStore(tmp_path / "store")
    monkeypatch.setattr(durable, "file_system", lambda _: 0xEF53)
    monkeypatch.setattr(durable, "_release", lambda: (5, 8))
    store.swap_all([Swap(key, b"1", None) for key in KEYS])
    assert calls.pop(0) == "fsync"  # of the folder in which the store was made
    assert len(calls) == 2
    assert "fsync" not in calls


@pytest.mark.parametrize(("kind", "release"), [(0x6969, (6, 1)), (0xEF53, (5, 7))], ids=["network", "old Linux"])
def test_elsewhere_each_file_and_each_folder_is_synced(tmp_path, monkeypatch, kind, release):
    calls = []
    monkeypatch.setattr(durable, "MANY", 2)
    monkeypatch.setattr(durable, "syncfs", lambda _: calls.append("syncfs"))
    monkeypatch.setattr(os, "fsync", calls.append)
    monkeypatch.setattr(durable, "file_system", lambda _: kind)
    monkeypatch.setattr(durable, "_release", lambda: release)
    LocalStore(tmp_path / "store").swap_all([Swap(key, b"1", None) for key in KEYS])
    assert "syncfs" not in calls
    assert len(calls) >= len(KEYS) + 2
