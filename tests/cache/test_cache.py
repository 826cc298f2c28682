"""The cache hands out only what is whole, and fetches the rest again."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading

import pytest

from deltahub.cache.cache import MANIFEST, Cache, copy_delta
from deltahub.errors import IntegrityError, StorageError
from tests.checkpoints import Fetched, content_of
from tests.faults import FORBIDDEN, FULL, INTERRUPT


@pytest.fixture
def source(checkpoint_folder) -> Fetched:
    return Fetched(checkpoint_folder)


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def whole(folder, source) -> bool:
    found = content_of(folder)
    return {name: found[name] for name in content_of(source.folder)} == content_of(source.folder)


def test_a_delta_is_fetched_once(cache, source):
    folder = source.into(cache)

    assert folder == source.into(cache) == cache.folder(source.digest)
    assert whole(folder, source)
    assert source.fetched == len(source.manifest.files)
    assert (folder / MANIFEST).read_bytes() == source.manifest.to_bytes()


def test_it_is_fetched_again_on_demand(cache, source):
    source.into(cache)
    folder = source.into(cache, fresh=True)

    assert whole(folder, source)
    assert source.fetched == 2 * len(source.manifest.files)


@pytest.mark.parametrize("name", ["README.md", "backbone.json", "delta.safetensors", "delta_config.json", MANIFEST])
def test_damaged_or_missing_files_are_downloaded_again(cache, source, name):
    path = source.into(cache) / name
    data = path.read_bytes()
    flipped = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(0, len(data), 9)]
    for damage in [*flipped, b"", data[:-1], data + b"\0"]:
        path.write_bytes(damage)
        assert "damaged" in cache.damage(source.digest)
        assert whole(source.into(cache), source)
        assert path.read_bytes() == data
    path.unlink()
    assert cache.damage(source.digest) == f"{name} is missing"
    assert whole(source.into(cache), source)
    path.unlink()
    path.mkdir()
    assert cache.damage(source.digest) is not None
    assert whole(source.into(cache), source)
    assert cache.damage(source.digest) is None


def test_a_whole_delta_that_another_process_placed_meanwhile_stays(cache, source, monkeypatch):
    there = source.into(cache).stat().st_ino
    monkeypatch.setattr(Cache, "damage", lambda self, digest, real=Cache.damage: looked() or real(self, digest))
    answers = iter(["is missing"])  # the first look is before the other process was done

    def looked():
        return next(answers, None)

    assert source.into(cache).stat().st_ino == there
    assert source.fetched == 2 * len(source.manifest.files)


def test_a_delta_is_placed_though_the_folder_of_all_is_removed_meanwhile(cache, source, monkeypatch):
    calls = iter([True])

    def replace(old, new, real=os.replace):
        if os.fspath(new) == os.fspath(cache.folder(source.digest)) and next(calls, False):
            shutil.rmtree(cache.root / "deltas")
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    assert whole(source.into(cache), source)


@pytest.mark.parametrize("name", ["delta.safetensors", "delta_config.json", MANIFEST])
@pytest.mark.parametrize("kind", ["a pipe", "a device", "64 GB of nothing"])
def test_files_that_are_not_part_of_a_delta_are_not_read(cache, source, name, kind):
    path = source.into(cache) / name
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(64 << 30)

    assert "damaged" in cache.damage(source.digest)
    assert whole(source.into(cache), source)


def test_a_source_that_is_damaged_leaves_nothing_behind(cache, source):
    def fetch(entry, into):
        if entry.path == "delta_config.json":
            raise IntegrityError(entry.path, "a", "b")
        source.fetch(entry, into)

    with pytest.raises(IntegrityError):
        cache.get(source.digest, source.manifest, fetch, "local:acme/ner@v1")
    assert content_of(cache.root) == {}
    assert cache.damage(source.digest) == f"{MANIFEST} is missing"


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
@pytest.mark.parametrize("before", ["empty", "whole", "damaged"])
def test_a_pull_that_fails_at_any_step_leaves_nothing_to_mistake_for_a_delta(tmp_path, source, faults, before, error):
    def prepare(case):
        cache = Cache(tmp_path / case)
        if before != "empty":
            folder = source.into(cache)
            if before == "damaged":
                (folder / "README.md").write_bytes(b"")
        return cache

    cache = prepare("count")
    steps = faults.count(lambda: source.into(cache, fresh=True))
    for case, step, failure in faults.each(steps, error):
        cache = prepare(case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            assert whole(source.into(cache, fresh=True), source), case
        if before == "whole":
            assert cache.damage(source.digest) is None, case
        assert list(cache.root.glob("staging/*")) == [], case
        assert whole(source.into(cache), source), case


def test_a_full_disk_is_one_sentence(cache, source, faults):
    with faults.at(5, FULL), pytest.raises(StorageError) as caught:
        source.into(cache)
    assert str(caught.value) == (
        f"Caching a delta failed in {cache.root} (No space left on device). "
        "No space is left there. Free some and repeat; nothing was half written."
    )


def test_a_read_only_cache_serves_its_deltas(shared_folder, source, new_checkpoint, as_nobody):
    cache, other = Cache(shared_folder / "cache"), Fetched(new_checkpoint(value=0.25))
    source.into(cache)
    as_nobody()

    assert source.into(cache) == cache.folder(source.digest)
    if os.access(cache.root, os.W_OK, effective_ids=True):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(StorageError, match=r"You may not write there\. Ask its owner for the right, or choose another"):
        other.into(cache)


def test_pulls_at_the_same_time_all_end_whole(tmp_path, source):
    for case in range(3):
        cache = Cache(tmp_path / f"cache-{case}")
        if case:
            (source.into(cache) / "README.md").write_bytes(b"")
        start, found = threading.Barrier(4), []

        def work(cache=cache, start=start, found=found):
            start.wait()
            try:
                found.append(source.into(cache))
            except BaseException as error:  # noqa: BLE001  (a thread's error would be lost)
                found.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [cache.folder(source.digest)] * 4
        assert cache.damage(source.digest) is None


def test_the_next_pull_removes_what_a_killed_one_left_but_no_running_one(cache, source):
    old, new = (f".deltahub-{digit * 32}" for digit in "0f")
    for name, time in ((old, 1), (new, None)):
        (cache.root / "staging" / name).mkdir(parents=True)
        if time:
            os.utime(cache.root / "staging" / name, (time, time))
    source.into(cache)

    assert [path.name for path in (cache.root / "staging").iterdir()] == [new]


def test_a_copy_is_the_published_content_or_fails(cache, source, tmp_path):
    folder = source.into(cache)
    (folder / "README.md").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"README\.md in the cache is damaged: .* Repeat the pull\."):
        copy_delta(source.manifest, folder, tmp_path / "copy")
    (folder / "README.md").unlink()
    with pytest.raises(IntegrityError, match="found nothing"):
        copy_delta(source.manifest, folder, tmp_path / "copy")

    assert content_of(tmp_path / "copy") == {}
