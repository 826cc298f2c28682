"""A lock file pins names to contents, whatever moves, and whatever else bears the same name."""

from __future__ import annotations

import contextlib
import json

import pytest

from deltahub.cache import maintenance
from deltahub.cache.cache import Cache
from deltahub.errors import CheckpointError, IntegrityError, NotLockedError, RemovedError, StorageError
from deltahub.hub.hub import Hub
from deltahub.hub.locating import locate
from deltahub.hub.lockfile import VARIABLE, Lock
from deltahub.reference import Reference
from deltahub.registry.edits import remove, set_alias
from deltahub.registry.registry import Registry
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import content_of
from tests.faults import FORBIDDEN, FULL, INTERRUPT

parse = Reference.parse
NER = parse("acme/ner")


@pytest.fixture
def two(tmp_path) -> Hub:
    """A local registry, and a team's."""
    registries = {name: Registry(MemoryStore(), name) for name in ("local", "team")}
    return Hub(registries, Cache(tmp_path / "cache"))


@pytest.fixture
def lock(two, new_checkpoint, tmp_path, monkeypatch) -> Lock:
    """Two versions in the team's registry; the lock holds the newest, by its alias, and is in force."""
    two.push(new_checkpoint(), "acme/ner", to="team")
    two.push(new_checkpoint(value=0.25), "acme/ner", aliases=["champion"], to="team")
    locked = Lock(tmp_path / "deltahub.lock", {"acme/ner@champion": two.pin(parse("acme/ner@champion"))})
    locked.write()
    monkeypatch.setenv(VARIABLE, str(locked.path))
    return locked


def test_a_lock_file_is_sorted_and_read_back_as_it_was_written(lock, two):
    both = Lock(lock.path, {"acme/zoo": two.pin(parse("acme/ner@v1")), **lock.pins})
    both.write()
    text = lock.path.read_text("utf-8")

    assert Lock.read(lock.path) == both
    assert list(json.loads(text)["deltas"]) == ["acme/ner@champion", "acme/zoo"]
    assert '\n      "digest": "sha256:' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("asked", ["acme/ner@champion", "acme/ner", "acme/ner@v2", "team:acme/ner"])
def test_the_locked_version_is_pulled_although_the_alias_moved(lock, two, new_checkpoint, asked):
    set_alias(two.registry("team"), "acme/ner", "champion", "v1")
    two.push(new_checkpoint(value=0.125), "acme/ner", aliases=["champion"], to="local")
    pulled = two.pull(parse(asked))

    assert (str(pulled.reference), pulled.digest) == ("team:acme/ner@v2", lock.pins["acme/ner@champion"].digest)


def test_a_digest_finds_what_is_locked(lock, two):
    digest = lock.pins["acme/ner@champion"].digest
    assert two.pull(NER.at(digest[:20])).digest == digest


@pytest.mark.parametrize(
    "asked", ["acme/nli", "acme/ner@v1", "acme/ner@prod", "local:acme/ner", "acme/ner@sha256:000000000000"]
)
def test_an_unlocked_name_is_an_error_that_says_what_to_do(lock, two, asked):
    with pytest.raises(NotLockedError) as caught:
        two.pull(parse(asked))
    assert f"{asked} is not locked in {lock.path}. It holds " in str(caught.value)
    assert f"`deltahub lock --add {asked} -o {lock.path}`" in str(caught.value)


def test_other_content_under_a_locked_version_is_an_error_that_names_both(lock, two, new_checkpoint):
    registry = two.registry("team")
    registry.store = MemoryStore()
    for value in (0.5, 0.75):
        two.push(new_checkpoint(value=value), "acme/ner", to="team")
    found = registry.document("acme/ner").versions["v2"].digest
    with pytest.raises(IntegrityError) as caught:
        two.pull(NER)
    for part in (lock.pins["acme/ner@champion"].digest, found, "team:acme/ner@v2", "Ask who changed it"):
        assert part in str(caught.value)


def test_a_locked_and_cached_delta_needs_no_registry(lock, two, tmp_path):
    two.pull(NER)
    alone = Hub({"local": Registry(MemoryStore())}, two.cache)

    assert alone.pull(NER, to=tmp_path / "copy").digest == lock.pins["acme/ner@champion"].digest
    (alone.cache.folder(alone.pull(NER).digest) / "README.md").write_bytes(b"x")
    with pytest.raises(Exception, match="team"):
        alone.pull(NER)


def test_a_locked_but_removed_version_says_so(lock, two):
    two.push(two.pull(NER).folder, "acme/ner", to="team")
    set_alias(two.registry("team"), "acme/ner", "champion", None)
    remove(two.registry("team"), "acme/ner", "v2")
    maintenance.prune(two.cache, older=0)
    with pytest.raises(RemovedError):
        two.pull(NER)


def test_loading_a_delta_by_name_takes_the_locked_version(lock, two, monkeypatch):
    monkeypatch.setattr(Hub, "open", classmethod(lambda cls, cache_dir, **how: two))
    assert content_of(locate("acme/ner")) == content_of(two.pull(NER).folder)
    with pytest.raises(NotLockedError):
        locate("acme/nli")


def test_syncing_brings_all_that_is_locked_and_keeping_it_removes_the_rest(lock, two, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    other = two.pull(NER.at("v1"))
    (pulled,) = two.sync(lock)

    assert pulled.digest == lock.pins["acme/ner@champion"].digest
    assert [entry.digest for entry in maintenance.keep(two.cache, lock.digests)] == [other.digest]
    assert [entry.digest for entry in maintenance.entries(two.cache)] == [pulled.digest]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"schema_version": 1, "deltas": {"a/b": {}}}',
        b'{"schema_version": 2, "deltas": {}}',
    ],
)
def test_a_damaged_lock_file_is_never_taken_for_an_empty_one(lock, two, data):
    lock.path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not a valid lock file: .*`deltahub lock REF\.\.\. -o "):
        two.pull(NER)


def test_a_lock_file_that_is_not_there_is_an_error(lock, two):
    lock.path.unlink()
    with pytest.raises(StorageError, match="Reading the lock file failed"):
        two.pull(NER)


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_writing_that_fails_at_any_step_leaves_the_old_file_or_the_new_one(lock, two, faults, error):
    new = Lock(lock.path, {"acme/ner": two.pin(NER.at("v1"))})
    steps = faults.count(new.write)
    for case, step, failure in faults.each(steps, error):
        lock.write()
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            new.write()
        assert Lock.read(lock.path) in (lock, new), case
        new.write()
        assert Lock.read(lock.path) == new, case
