"""Any step of any change fails or is the last one: the change is done or not, what was acknowledged stays, and it can be repeated."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter

import pytest

from deltahub.cache.cache import Cache
from deltahub.errors import DeltaHubError, StorageError
from deltahub.hub.hub import Hub
from deltahub.registry.bundle import export_bundle
from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.stores.local import LocalStore
from tests.faults.actions import ACTIONS, NER, between, damage_of, state_of
from tests.faults.disk import Seen, tree_of
from tests.faults.injection import Faults

pytestmark = [
    pytest.mark.slow,  # an error at every step
    pytest.mark.skipif(os.name == "nt", reason="no fork"),
]


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


ALL = "DELTAHUB_FAULTS_ALL" in os.environ  # every error at every step; else one of them at each, in turn
ERRORS = [error(number) for number in (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)]


@pytest.mark.parametrize("action", ACTIONS)
def test_a_process_killed_at_any_step_leaves_the_old_state_or_the_new_one(registries, world, faults, action):
    act = ACTIONS[action]
    registry = registries.new("whole")
    before = state_of(registry)
    left = faults.killed(registry.store.root, lambda: act(registry, world))
    after = state_of(registry)
    assert left
    for step, tree in left:
        registry = registries.holding("killed", tree)
        found = state_of(registry)
        assert found in between(action, before, after), step
        assert not damage_of(registry), step
        if action == "gc" or found != after:
            act(registry, world)
            assert state_of(registry) == after, step
            assert not damage_of(registry), step
        registries.drop("killed")


@pytest.mark.parametrize("action", ACTIONS if ALL else ["push many, one sync", "gc"])
def test_a_process_that_is_killed_leaves_what_was_there_at_that_moment(registries, world, faults, action):
    registry = registries.new("whole")
    steps = faults.count(lambda: ACTIONS[action](registry, world))
    registry = registries.new("again")
    left = dict(faults.killed(registry.store.root, lambda: ACTIONS[action](registry, world)))

    def content(tree):  # the order of objects, and names and numbers of what is under way, are drawn
        found = Counter()
        for path, data in tree.items():
            kind = path.split("/")[0]
            found[(path, data) if kind == "refs" else (kind, data and (len(data) if kind != "objects" else 0))] += 1
        return found

    for step in range(1, steps + 1, 1 if ALL else 7):
        registry = registries.new("killed")
        faults.kill(step, lambda registry=registry: ACTIONS[action](registry, world))
        expected = left[max(seen for seen in left if seen <= step)]
        assert content(tree_of(registry.store.root)) == content(expected), step
        registries.drop("killed")


@pytest.mark.parametrize("turn", range(4) if ALL else [0])
@pytest.mark.parametrize("action", ACTIONS)
def test_an_error_at_any_step_is_one_sentence_and_loses_nothing(registries, world, faults, action, turn):
    act = ACTIONS[action]
    registry = registries.new("count")
    before = state_of(registry)
    steps = faults.count(lambda: act(registry, world))
    after = state_of(registry)
    sentences: list[tuple[str, str]] = []
    seen = Seen()
    for step in range(1, steps + 1):
        failure = ERRORS[(step + turn) % 4]
        registry = registries.new("failed")
        done = False
        with faults.at(step, failure):
            try:
                act(registry, world)
                done = True
            except StorageError as raised:
                sentences.append((str(raised), failure.strerror))
        found = state_of(registry)
        assert found in ([after] if done else between(action, before, after)), step
        if seen.is_new(registry.store.root):
            assert not damage_of(registry), step
            if action == "gc" or found != after:
                act(registry, world)
                assert state_of(registry) == after, step
                assert not damage_of(registry), step
        registries.drop("failed")
    assert sentences
    assert all(reason in sentence for sentence, reason in sentences)


@pytest.mark.parametrize("turn", range(4) if ALL else [0])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_read_error_is_a_deltahub_error_and_loses_nothing(registries, world, monkeypatch, action, turn):
    faults = Faults(monkeypatch, removals=True, reads=True)
    act = ACTIONS[action]
    registry = registries.new("count")
    act(registry, world)  # what is read once by every process is read now
    registries.drop("count")
    registry = registries.new("count")
    before = state_of(registry)
    steps = faults.count(lambda: act(registry, world))
    after = state_of(registry)
    seen = Seen()
    for step in range(1 + turn // 2, steps + 1, 2):  # half of them in one turn
        failure = ERRORS[1 + (step // 2 + turn) % 2]  # EIO, EACCES
        registry = registries.new("failed")
        done = False
        with faults.at(step, failure):
            try:
                act(registry, world)
                done = True
            except DeltaHubError:
                pass
        found = state_of(registry)
        assert found in ([after] if done else between(action, before, after)), step
        if seen.is_new(registry.store.root):
            assert not damage_of(registry), step
            if action == "gc" or found != after:
                act(registry, world)
                assert state_of(registry) == after, step
        registries.drop("failed")


READERS = {
    "list": lambda registry, into: registry.names(),
    "show": lambda registry, into: registry.resolve(NER),
    "pull": lambda registry, into: Hub({"local": registry}, Cache(into / "cache")).pull(NER, to=into / "copy").digest,
    "verify": lambda registry, into: list(verify(registry)),
    "export": lambda registry, into: export_bundle([(registry, NER)], into / "x.tar"),
}


@pytest.mark.parametrize("turn", range(4) if ALL else [0])
@pytest.mark.parametrize("reader", READERS)
def test_readers_get_the_content_or_a_deltahub_error(registries, monkeypatch, reader, turn, quick):
    faults = Faults(monkeypatch, removals=True, reads=True)
    registry = Registry(LocalStore(registries.filled))

    def read(name):
        return READERS[reader](registry, quick / name)

    for name in ("first", "count"):
        (quick / name).mkdir()
        expected = read(name)
        shutil.rmtree(quick / name)
    (quick / "count").mkdir()
    steps = faults.count(lambda: read("count"))
    failed = 0
    for step in range(1, steps + 1):
        (quick / f"{step}").mkdir()
        try:
            with faults.at(step, ERRORS[(step + turn) % 4]):
                found = read(f"{step}")
        except DeltaHubError:
            failed += 1
            continue
        assert found == expected or (reader == "verify" and any(damage for _, damage in found)), step
    assert failed or reader == "verify"
