"""A delta in the cache can be removed under its reader, who gets it again and keeps it."""

from __future__ import annotations

import os
import shutil

import pytest

from deltahub.cache import maintenance
from deltahub.cache.cache import READING, Cache, read_cached
from deltahub.errors import CheckpointError, IntegrityError
from tests.checkpoints import Fetched


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def source(checkpoint_folder) -> Fetched:
    return Fetched(checkpoint_folder)


def test_a_reader_whose_delta_is_removed_under_it_gets_it_again_and_keeps_it(cache, source):
    pruned = []

    def read(folder):
        pruned.append(maintenance.prune(cache, older=0))
        return (folder / "README.md").read_bytes()

    assert read_cached(lambda: source.into(cache), read) == (source.folder / "README.md").read_bytes()
    assert [len(removed) for removed in pruned] == [1, 0]
    assert len(maintenance.prune(cache, older=0)) == 1  # it is done
    assert list((cache.root / READING).iterdir()) == []


def test_a_delta_that_is_moved_away_and_back_under_its_reader_is_read_again(cache, source):
    times = []

    def read(folder):
        times.append(folder)
        if len(times) == 1:
            os.replace(folder, cache.root / "aside")
            os.replace(cache.root / "aside", folder)
            raise FileNotFoundError
        return folder

    assert read_cached(lambda: source.into(cache), read) == cache.folder(source.digest)


def test_a_delta_that_is_removed_and_fetched_again_while_it_is_read_is_read_again(cache, source):
    cards = []

    def read(folder):
        if not cards:
            os.replace(folder, cache.root / "aside")
            cards.append((folder / "README.md").is_file())
            source.into(cache)
        else:
            cards.append((folder / "README.md").is_file())
        return cards[-1]

    assert read_cached(lambda: source.into(cache), read)
    assert cards == [False, True]


@pytest.mark.parametrize(
    "error", [CheckpointError("malformed"), IntegrityError("it", "a", "b"), FileNotFoundError("x")]
)
def test_a_reader_that_fails_with_the_delta_in_its_place_is_asked_once(cache, source, error):
    asked = []

    def read(folder):
        asked.append(folder)
        raise error

    with pytest.raises(type(error)):
        read_cached(lambda: source.into(cache), read)
    assert len(asked) == 1


def test_a_folder_that_is_in_no_cache_is_read_once(tmp_path):
    asked = []

    def read(folder):
        asked.append(folder)
        return (folder / "README.md").read_bytes()

    with pytest.raises(FileNotFoundError):
        read_cached(lambda: tmp_path / "gone", read)
    assert len(asked) == 1


def test_a_reader_whose_delta_goes_again_and_again_gives_up(cache, source):
    asked = []

    def read(folder):
        asked.append(folder)
        shutil.rmtree(folder)
        return (folder / "README.md").read_bytes()

    with pytest.raises(FileNotFoundError):
        read_cached(lambda: source.into(cache), read)
    assert len(asked) == 5
    assert list((cache.root / READING).iterdir()) == []


def test_a_killed_readers_mark_is_valid_for_an_hour(cache, source):
    source.into(cache)
    mark = cache.root / READING / f"{source.digest[7:]}.{'0' * 32}"
    mark.parent.mkdir()
    mark.touch()
    assert maintenance.prune(cache, older=0) == []

    os.utime(mark, (1, 1))
    assert [entry.digest for entry in maintenance.prune(cache, older=0)] == [source.digest]
    assert not mark.exists()
