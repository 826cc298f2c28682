"""A compare-and-swap on files that needs no lock: of many one wins, and whoever was slow or killed overwrites nothing."""

from __future__ import annotations

import fcntl
import multiprocessing
import os

import pytest

from deltahub.errors import ConflictError
from deltahub.stores import local_files
from deltahub.stores.local import CLAIMS, LocalStore
from deltahub.stores.local_files import replace_claimed
from tests.checkpoints import content_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no fork")
DOCUMENT = "refs/acme/ner.json"


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def count(root, times):
    """Add one to a number, so often; each counts only once it is acknowledged."""
    store = LocalStore(root)
    while times:
        data, etag = store.read_tagged(DOCUMENT)
        try:
            store.swap(DOCUMENT, b"%d" % (int(data) + 1), etag)
        except ConflictError:
            continue
        times -= 1


def test_processes_that_count_together_lose_nothing_where_locks_do_nothing(store, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(fcntl, "lockf", lambda *_: None)
    store.swap(DOCUMENT, b"0", None)
    processes = [multiprocessing.get_context("fork").Process(target=count, args=(store.root, 20)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert store.read(DOCUMENT) == b"80"
    assert list(content_of(store.root)) == [DOCUMENT]


def test_a_claim_of_a_killed_process_is_taken_away(store, monkeypatch):
    monkeypatch.setattr(local_files, "SILENT", 0.0)
    etag = store.swap(DOCUMENT, b"old", None)
    left = store.root / CLAIMS / DOCUMENT
    left.mkdir(parents=True)
    (left / "0123").write_bytes(b"what it was about to write")

    store.swap(DOCUMENT, b"new", etag)
    assert content_of(store.root) == {DOCUMENT: b"new"}


def test_an_empty_claim_belongs_to_a_finished_writer(store):
    etag = store.swap(DOCUMENT, b"old", None)
    (store.root / CLAIMS / DOCUMENT).mkdir(parents=True)
    store.swap(DOCUMENT, b"new", etag)
    assert content_of(store.root) == {DOCUMENT: b"new"}


def test_a_slow_writer_that_lost_its_claim_overwrites_nothing(store, monkeypatch):
    monkeypatch.setattr(local_files, "SILENT", 0.0)
    etag = store.swap(DOCUMENT, b"old", None)
    looks = []

    def slow():
        """The last look before the rename takes so long that somebody else takes the claim away and is done."""
        looks.append(store.read(DOCUMENT))
        if len(looks) == 2:
            store.swap(DOCUMENT, b"theirs", etag)
        elif store.read(DOCUMENT) != b"old":
            raise ConflictError(DOCUMENT, "old", "theirs")

    with pytest.raises(ConflictError):
        replace_claimed(store.root / DOCUMENT, b"mine", store.root / CLAIMS / DOCUMENT, slow)
    assert looks == [b"old", b"old", b"theirs"]
    assert content_of(store.root) == {DOCUMENT: b"theirs"}


def test_a_writer_whose_claim_was_taken_without_a_write_tries_again(store):
    store.swap(DOCUMENT, b"old", None)
    claim = store.root / CLAIMS / DOCUMENT
    looks = []

    def check():
        looks.append(None)
        if len(looks) == 2:
            claim.rename(claim.with_name("broken"))

    replace_claimed(store.root / DOCUMENT, b"new", claim, check)
    assert store.read(DOCUMENT) == b"new"


def test_a_writer_waiting_for_a_claim_notices_a_change_at_once(store):
    etag = store.swap(DOCUMENT, b"old", None)
    claim = store.root / CLAIMS / DOCUMENT
    claim.mkdir(parents=True)
    (claim / "0123").write_bytes(b"")
    looks = []

    def check():
        looks.append(None)
        if len(looks) == 3:
            (store.root / DOCUMENT).write_bytes(b"theirs")
        store._require(DOCUMENT, etag)

    with pytest.raises(ConflictError):
        replace_claimed(store.root / DOCUMENT, b"mine", claim, check)
    assert (claim / "0123").exists()
