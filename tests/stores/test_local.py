"""A folder as a store: nothing half written, nothing lost, whatever fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from types import SimpleNamespace

import pytest

from deltahub.errors import NotFoundError, StorageError
from deltahub.files.reserve import with_reserve
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from tests.checkpoints import content_of
from tests.faults import FORBIDDEN, FULL, INTERRUPT

WEIGHTS, CARD = b"weights", b"card"
SOURCES = {hashlib.sha256(data).hexdigest(): data for data in (WEIGHTS, CARD)}
KEYS = [object_key(digest) for digest in SOURCES]
DOCUMENT = "refs/acme/ner.json"


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def readable(store: LocalStore) -> dict[str, bytes]:
    return {key: data for key, data in content_of(store.root).items() if not key.startswith("claims")}


def test_reading_makes_no_folder(store):
    assert list(store.keys("refs/")) == []
    assert store.read_tagged(DOCUMENT) is None
    assert not store.root.exists()


def test_nothing_is_left_in_staging(store):
    store.create(SOURCES)
    store.swap(DOCUMENT, b"1", None)

    assert sorted(readable(store)) == sorted([*KEYS, DOCUMENT])


def test_objects_cannot_be_written_by_accident(store):
    store.create(SOURCES)

    assert {(store.root / key).stat().st_mode & 0o777 for key in KEYS} == {0o444}


def test_a_damaged_object_is_written_again(store):
    store.create(SOURCES)
    for damage in (b"", WEIGHTS[:-1], b"Weights", WEIGHTS + b"!"):
        path = store.root / KEYS[0]
        path.chmod(0o644)
        path.write_bytes(damage)
        store.create(SOURCES)
        assert store.read(KEYS[0]) == WEIGHTS


def test_a_whole_object_is_left_alone_but_counts_as_new(store):
    store.create(SOURCES)
    path = store.root / KEYS[0]
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    store.create(SOURCES)

    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_storing_objects_that_fails_at_any_step_leaves_only_whole_ones(tmp_path, faults, error):
    steps = faults.count(lambda: LocalStore(tmp_path / "count").create(SOURCES))
    for case, step, failure in faults.each(steps, error):
        store = LocalStore(tmp_path / case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            store.create(SOURCES)
        for digest, data in SOURCES.items():
            assert readable(store).get(object_key(digest), data) == data, case
        assert set(readable(store)) <= set(KEYS), case
        store.create(SOURCES)
        assert sorted(readable(store)) == sorted(KEYS), case


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_swap_that_fails_at_any_step_leaves_the_old_document_or_the_new_one(tmp_path, faults, error):
    def prepare(case):
        store = LocalStore(tmp_path / case)
        return store, store.swap(DOCUMENT, b"old", None)

    store, etag = prepare("count")
    steps = faults.count(lambda: store.swap(DOCUMENT, b"new", etag))
    for case, step, failure in faults.each(steps, error):
        store, etag = prepare(case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            store.swap(DOCUMENT, b"new", etag)
        data, etag = store.read_tagged(DOCUMENT)
        assert data in (b"old", b"new"), case
        assert sorted(readable(store)) == [DOCUMENT], case
        store.swap(DOCUMENT, b"newer", etag)
        assert store.read(DOCUMENT) == b"newer"


def test_a_full_store_is_freed_with_what_was_set_aside_and_pushes_do_not_take_it(store, full_disk):
    store.create(SOURCES)
    pieces = store.root / "reserve"
    assert {path.stat().st_blocks * 512 for path in pieces.iterdir()} == {128 << 10}
    with full_disk():
        with_reserve(store.spend_reserve, lambda: store.swap(DOCUMENT, b"1", None))
    assert (store.read(DOCUMENT), len(list(pieces.iterdir()))) == (b"1", 7)

    with full_disk(), pytest.raises(StorageError):
        store.swap("refs/acme/other.json", b"1", None)
    assert len(list(pieces.iterdir())) == 7
    store.create(SOURCES)
    assert len(list(pieces.iterdir())) == 8


def test_nothing_is_set_aside_where_space_is_short(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    store.create(SOURCES)
    assert not (store.root / "reserve").exists()
    assert not store.spend_reserve()


def test_a_full_disk_is_one_sentence_with_the_way_out(store, faults):
    with faults.at(3, FULL), pytest.raises(StorageError) as caught:
        store.create(SOURCES)
    assert str(caught.value) == (
        f"Storing a delta failed in {store.root} (No space left on device). "
        "No space is left there. Free some and repeat; nothing was half written."
    )


def test_a_folder_that_may_not_be_written_is_one_sentence_and_still_readable(shared_folder, as_nobody):
    store = LocalStore(shared_folder / "store")
    store.create(SOURCES)
    etag = store.swap(DOCUMENT, b"1", None)
    for path in (store.root, *store.root.rglob("*")):
        if path.is_dir():
            path.chmod(0o555)
    as_nobody()

    if os.access(store.root, os.W_OK, effective_ids=True):
        pytest.skip("permissions do not bind this user")
    other = hashlib.sha256(b"other").hexdigest()
    for write in (
        lambda: store.create({other: b"other"}),
        lambda: store.swap(DOCUMENT, b"2", etag),
        lambda: store.delete(DOCUMENT),
    ):
        with pytest.raises(StorageError, match=r"Permission denied.*You may not write there\. Ask its owner"):
            write()
    assert store.read(DOCUMENT) == b"1"
    assert store.read(KEYS[0]) == WEIGHTS


def test_a_colleague_can_store_an_object_that_is_there_already(shared_folder, as_nobody):
    umask = os.umask(0)
    try:
        store = LocalStore(shared_folder / "store")
        shared_folder.chmod(0o777)
        store.create(SOURCES)
        as_nobody()
        store.create(SOURCES)
        assert store.swap(DOCUMENT, b"1", None)
    finally:
        os.umask(umask)
    assert store.read(KEYS[0]) == WEIGHTS


def test_a_forbidden_read_is_one_clear_error(shared_folder, as_nobody, tmp_path):
    store = LocalStore(shared_folder / "store")
    store.create(SOURCES)
    store.swap(DOCUMENT, b"1", None)
    store.root.chmod(0o700)
    as_nobody()

    if os.access(store.root, os.R_OK, effective_ids=True):
        pytest.skip("permissions do not bind this user")
    for read in (
        lambda: store.read(DOCUMENT),
        lambda: store.read_tagged(DOCUMENT),
        lambda: list(store.keys("refs/")),
        lambda: store.fetch(KEYS[0], tmp_path / "copy"),
    ):
        with pytest.raises(StorageError, match="Permission denied"):
            read()


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path):
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StorageError, match="Check that path and its disk"):
        LocalStore(tmp_path / "store").swap(DOCUMENT, b"1", None)
    with pytest.raises(NotFoundError):
        LocalStore(tmp_path / "store").read(DOCUMENT)


@pytest.mark.parametrize("place", ["file", "file/store"])
def test_a_file_where_the_folder_should_be_is_no_empty_store(tmp_path, place):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file is a file; expected the folder of a registry"):
        list(LocalStore(tmp_path / place).keys("refs/"))


def test_a_key_that_vanishes_while_keys_are_listed_is_passed_over(store, monkeypatch):
    store.swap(DOCUMENT, b"1", None)
    store.swap("refs/acme/zoo.json", b"1", None)
    keys = store.keys("refs/")
    first = next(keys)
    store.delete("refs/acme/zoo.json")

    assert [first[0], *(key for key, _ in keys)] == [DOCUMENT]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize(("root", "folder", "file"), [(0o2775, 0o2775, 0o664), (0o750, 0o750, 0o640)])
def test_new_files_inherit_from_the_root_under_any_umask(tmp_path, root, folder, file):
    store = LocalStore(tmp_path / "shared")
    store.root.mkdir()
    store.root.chmod(root)
    before = os.umask(0o027)
    try:
        store.create({hashlib.sha256(b"x").hexdigest(): b"x"})
        store.swap("refs/acme/ner.json", b"{}", None)
    finally:
        os.umask(before)
    for path in store.root.rglob("*"):
        wanted = folder if path.is_dir() else file & 0o444 if "objects" in path.parts else file
        assert path.stat().st_mode & 0o7777 == wanted, path


def test_a_mount_without_rights_and_syncing_of_folders_is_stored_to_all_the_same(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    def sync(descriptor, real=os.fsync):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fsync", sync)
    store = LocalStore(tmp_path / "mount")
    store.create({hashlib.sha256(b"x").hexdigest(): b"x"})
    store.swap("refs/acme/ner.json", b"{}", None)
    assert store.read("refs/acme/ner.json") == b"{}"
