"""What stays in a cache and what goes, with other processes at the same cache."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time

import pytest

from deltahub.cache import maintenance
from deltahub.cache.cache import ORIGIN, Cache
from deltahub.cache.maintenance import PINS, entries, find, pin, pins, prune, unpin
from deltahub.errors import NotFoundError, ReferenceSyntaxError, StorageError
from tests.checkpoints import Fetched, content_of
from tests.faults import FORBIDDEN, FULL, INTERRUPT, Faults

DAY = 86400


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def source(checkpoint_folder) -> Fetched:
    return Fetched(checkpoint_folder)


@pytest.fixture
def aged(cache, new_checkpoint):
    """Puts a delta into the cache that was last used at a given time."""

    def put(used, origin="local:acme/ner@v1", value=None):
        delta = Fetched(new_checkpoint(value=float(used if value is None else value)))
        os.utime(delta.into(cache, origin), (used, used))
        return delta.digest

    return put


def held(cache) -> set[str]:
    return {entry.digest for entry in entries(cache)}


def gone(removed) -> list[str]:
    return [entry.digest for entry in removed]


# ----- what is there -----


def test_cached_deltas_are_listed_with_origin_and_size(cache, source):
    folder = source.into(cache)
    (entry,) = entries(cache)

    assert (entry.digest, entry.folder, entry.origin, entry.pinned) == (
        source.digest,
        folder,
        "local:acme/ner@v1",
        None,
    )
    assert entry.size == sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"[]", b"3", b"{}", b"\xff", b'{"origin": 3}'])
def test_a_damaged_origin_hides_nothing(cache, source, data):
    (source.into(cache) / ORIGIN).write_bytes(data)

    assert [entry.origin for entry in entries(cache)] == ["unknown"]


def test_other_files_in_the_cache_are_passed_over(cache, source):
    folder = source.into(cache)
    (folder.parent / ".DS_Store").write_bytes(b"x")
    (folder.parent.parent / "README").write_bytes(b"x")
    (folder.parent / ("0" * 62)).write_bytes(b"x")

    assert held(cache) == {source.digest}


def test_an_empty_cache_lists_nothing_and_is_not_made(cache):
    assert list(entries(cache)) == []
    assert prune(cache, older=0, dry_run=True) == []
    assert not cache.root.exists()


def test_a_delta_is_found_by_what_it_was_pulled_as_and_by_the_start_of_its_digest(cache, aged):
    digest = aged(1, "team:acme/ner@v3")
    aged(2, "team:acme/other@v1")

    for text in ("team:acme/ner@v3", "acme/ner@v3", "acme/ner", "team:acme/ner", digest, digest[:19]):
        assert find(cache, text).digest == digest, text


def test_a_name_without_a_namespace_is_found_in_the_users_own(cache, aged, monkeypatch):
    monkeypatch.setenv("DELTAHUB_NAMESPACE", "acme")
    digest = aged(1, "team:acme/ner@v3")

    assert find(cache, "ner").digest == digest


def test_a_delta_that_is_not_in_the_cache_is_not_found(cache, aged):
    aged(1)
    with pytest.raises(NotFoundError, match=r"acme/nix was not found\. Looked in: the cache .*local:acme/ner@v1"):
        find(cache, "acme/nix")


def test_a_name_with_two_cached_versions_is_ambiguous(cache, aged):
    aged(1, "local:acme/ner@v1")
    second = aged(2, "local:acme/ner@v2")

    with pytest.raises(ReferenceSyntaxError, match=r"means 2 deltas in the cache: local:acme/ner@v. \(sha256:"):
        find(cache, "acme/ner")
    assert find(cache, "acme/ner@v2").digest == second


# ----- what goes -----


def test_pruning_removes_unused_deltas(cache, source, aged):
    old = aged(1)
    source.into(cache)

    assert gone(prune(cache, older=3600)) == [old]
    assert held(cache) == {source.digest}
    assert gone(prune(cache, older=0)) == [source.digest]
    assert held(cache) == set()


def test_using_a_delta_keeps_it(cache, source):
    os.utime(source.into(cache), (1, 1))
    source.into(cache)

    assert prune(cache, older=3600) == []


def test_a_cache_over_its_limit_loses_the_least_recently_used(cache, aged):
    ages = [aged(used) for used in (3, 1, 2)]
    size = max(entry.size for entry in entries(cache))

    assert gone(prune(cache, most=2 * size)) == [ages[1]]
    assert prune(cache, most=2 * size) == []
    assert gone(prune(cache, most=0)) == [ages[2], ages[0]]


def test_a_delta_that_a_wrong_clock_used_in_the_future_does_not_stay_until_then(cache, aged):
    digest = aged(int(time.time()) + 9999 * DAY)
    assert prune(cache, older=30 * DAY) == []
    folder = cache.folder(digest)
    os.utime(folder, (used := folder.stat().st_mtime - 31 * DAY, used))
    assert gone(prune(cache, older=30 * DAY)) == [digest]


def test_a_cache_on_a_full_disk_is_pruned_with_what_was_set_aside(cache, aged, faults):
    digest = aged(1)
    with faults.at(3, FULL):  # the first that a prune makes itself
        assert gone(prune(cache, older=DAY)) == [digest]
    assert len(list((cache.root / "reserve").iterdir())) == 7


def test_a_dry_run_says_the_same_and_removes_nothing(cache, aged):
    for used in (1, 2, 3):
        aged(used)
    before = content_of(cache.root)
    planned = gone(prune(cache, older=DAY, most=1, dry_run=True))

    assert content_of(cache.root) == before
    assert gone(prune(cache, older=DAY, most=1)) == planned
    assert len(planned) == 3


def test_a_pinned_delta_is_never_pruned(cache, aged):
    kept, other = aged(1), aged(2)
    pin(cache, kept, "local:acme/ner@v1", lambda: None)

    assert pins(cache) == {kept: "local:acme/ner@v1"}
    assert gone(prune(cache, older=0, most=0)) == [other]
    assert maintenance.keep(cache, []) == []
    assert held(cache) == {kept}
    assert unpin(cache, kept)
    assert not unpin(cache, kept)
    assert gone(prune(cache, most=0)) == [kept]


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff"])
def test_a_damaged_pin_pins_all_the_same(cache, aged, data):
    digest = aged(1)
    pin(cache, digest, "local:acme/ner@v1", lambda: None)
    (cache.root / PINS / f"{digest[7:]}.json").write_bytes(data)

    assert [entry.pinned for entry in entries(cache)] == ["unknown"]
    assert prune(cache, older=0) == []


def test_a_pin_holds_before_its_delta_is_fetched(cache, source):
    pin(cache, source.digest, "acme/ner", lambda: (prune(cache, older=0), source.into(cache), prune(cache, older=0)))

    assert held(cache) == {source.digest}


def test_a_delta_that_cannot_be_fetched_is_not_pinned(cache, source):
    def fetch():
        raise NotFoundError("it")

    with pytest.raises(NotFoundError):
        pin(cache, source.digest, "acme/ner", fetch)
    assert pins(cache) == {}


# ----- beside others -----


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("how", ["used", "pinned"])
def test_a_delta_used_or_pinned_since_it_was_listed_is_kept(cache, source, monkeypatch, moment, how):
    os.utime(source.into(cache), (1, 1))
    replace = os.replace

    def want(folder):
        if how == "used":
            os.utime(folder)
        else:
            pin(cache, source.digest, "acme/ner", lambda: None)

    if moment == "before":
        doomed = list(entries(cache))
        want(doomed[0].folder)
        assert maintenance._remove(cache, doomed) == []
    else:

        def step(old, new):
            replace(old, new)
            if old == cache.folder(source.digest):
                monkeypatch.setattr(os, "replace", replace)
                want(new)

        monkeypatch.setattr(os, "replace", step)
        assert prune(cache, older=0) == []
    assert cache.damage(source.digest) is None


def test_a_delta_pruned_by_another_process_is_not_an_error(cache, aged):
    aged(1)
    doomed = list(entries(cache))
    shutil.rmtree(doomed[0].folder)

    assert maintenance._remove(cache, doomed) == []


def test_a_delta_that_a_killed_prune_moved_aside_is_gone_for_readers_and_later_for_good(cache, source):
    folder = source.into(cache)
    aside = cache.root / "staging" / f".deltahub-{'0' * 32}" / "0"
    aside.parent.mkdir(parents=True)
    os.replace(folder, aside)
    os.utime(aside.parent, (1, 1))

    assert held(cache) == set()
    assert source.into(cache) == folder
    assert not aside.exists()


def test_a_cache_that_may_not_be_written_says_so(shared_folder, source, as_nobody):
    cache = Cache(shared_folder / "cache")
    source.into(cache)
    as_nobody()
    if os.access(cache.root, os.W_OK, effective_ids=True):
        pytest.skip("permissions do not bind this user")

    with pytest.raises(StorageError, match="Pruning the cache failed"):
        prune(cache, older=0)
    with pytest.raises(StorageError, match="Pinning a delta failed"):
        pin(cache, source.digest, "acme/ner", lambda: None)
    assert held(cache) == {source.digest}


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_prune_that_fails_at_any_step_leaves_each_delta_whole_or_gone(tmp_path, new_checkpoint, monkeypatch, error):
    sources, faults = (
        [Fetched(new_checkpoint(value=float(value))) for value in (1, 2)],
        Faults(monkeypatch, removals=True),
    )

    def prepare(case):
        cache = Cache(tmp_path / case)
        for source in sources:
            os.utime(source.into(cache), (1, 1))
        return cache

    cache = prepare("count")
    steps = faults.count(lambda: prune(cache, older=0))
    for case, step, failure in faults.each(steps, error):
        cache = prepare(case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            prune(cache, older=0)
        assert {cache.damage(digest) for digest in held(cache)} <= {None}, case
        prune(cache, older=0)
        assert held(cache) == set(), case
        for source in sources:
            source.into(cache)
        assert len(held(cache)) == 2, case


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_pin_that_fails_at_any_step_is_there_or_not(tmp_path, source, faults, error):
    def prepare(case):
        cache = Cache(tmp_path / case)
        source.into(cache)
        return cache

    cache = prepare("count")
    steps = faults.count(lambda: pin(cache, source.digest, "acme/ner", lambda: None))
    for case, step, failure in faults.each(steps, error):
        cache = prepare(case)
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            pin(cache, source.digest, "acme/ner", lambda: None)
        assert pins(cache) in ({}, {source.digest: "acme/ner"}), case
        pin(cache, source.digest, "acme/ner", lambda: None)
        assert prune(cache, older=0) == [], case


def test_a_pin_is_one_small_file(cache, aged):
    digest = aged(1)
    pin(cache, digest, "local:acme/ner@v1", lambda: None)

    assert json.loads((cache.root / PINS / f"{digest[7:]}.json").read_bytes()) == {"reference": "local:acme/ner@v1"}
