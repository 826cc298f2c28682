"""The cache hands out only what is whole, and fetches the rest again."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from deltahub import checkpoint
from deltahub.cache import MANIFEST, ORIGIN, Cache
from deltahub.errors import IntegrityError, StorageError
from deltahub.files import copy_hashed
from tests.checkpoints import content_of
from tests.faults import FORBIDDEN, FULL, INTERRUPT


class Source:
    """A delta that can be fetched, and a count of how often it was."""

    def __init__(self, folder):
        self.folder, self.fetched = folder, 0
        self.manifest = checkpoint.describe(folder)
        self.digest = self.manifest.digest

    def fetch(self, entry, into):
        self.fetched += 1
        copy_hashed(self.folder / entry.path, into)

    def into(self, cache, **options):
        return cache.get(self.digest, self.manifest, self.fetch, "local:acme/ner@v1", **options)


@pytest.fixture
def source(checkpoint_folder) -> Source:
    return Source(checkpoint_folder)


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
def test_what_is_damaged_or_gone_is_fetched_again(cache, source, name):
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


def test_a_source_that_is_damaged_leaves_nothing_behind(cache, source):
    def fetch(entry, into):
        if entry.path == "delta_config.json":
            raise IntegrityError(entry.path, "a", "b")
        source.fetch(entry, into)

    with pytest.raises(IntegrityError):
        cache.get(source.digest, source.manifest, fetch, "local:acme/ner@v1")
    assert content_of(cache.root) == {}
    assert cache.damage(source.digest) == f"{MANIFEST} is missing"


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


def test_a_cache_that_may_only_be_read_serves_what_it_has(shared_folder, source, new_checkpoint, as_nobody):
    cache, other = Cache(shared_folder / "cache"), Source(new_checkpoint(value=0.25))
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


def test_what_is_cached_is_listed_with_its_origin(cache, source):
    folder = source.into(cache)
    (entry,) = cache.entries()

    assert (entry.digest, entry.folder, entry.origin) == (source.digest, folder, "local:acme/ner@v1")
    assert entry.size == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b"\xff"])
def test_a_damaged_origin_hides_nothing(cache, source, data):
    (source.into(cache) / ORIGIN).write_bytes(data)

    assert [entry.origin for entry in cache.entries()] == ["unknown"]


def test_other_files_in_the_cache_are_passed_over(cache, source):
    folder = source.into(cache)
    (folder.parent / ".DS_Store").write_bytes(b"x")

    assert [entry.digest for entry in cache.entries()] == [source.digest]


def test_pruning_removes_what_was_not_used_for_a_while(cache, source, new_checkpoint):
    old = Source(new_checkpoint(value=0.25))
    os.utime(old.into(cache), (1, 1))
    source.into(cache)

    assert [entry.digest for entry in cache.prune(older=3600)] == [old.digest]
    assert [entry.digest for entry in cache.entries()] == [source.digest]
    assert [entry.digest for entry in cache.prune()] == [source.digest]
    assert list(cache.entries()) == []


def test_using_a_delta_keeps_it(cache, source):
    os.utime(source.into(cache), (1, 1))
    source.into(cache)

    assert cache.prune(older=3600) == []


def test_the_next_pull_removes_what_a_killed_one_left_but_no_running_one(cache, source):
    old, new = (f".deltahub-{digit * 32}" for digit in "0f")
    for name, time in ((old, 1), (new, None)):
        (cache.root / "staging" / name).mkdir(parents=True)
        if time:
            os.utime(cache.root / "staging" / name, (time, time))
    source.into(cache)

    assert [path.name for path in (cache.root / "staging").iterdir()] == [new]
