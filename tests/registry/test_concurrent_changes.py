"""Pushes, moves, removals, renames, collections without grace and mirrors, each step in any order: nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import random
from datetime import timedelta
from functools import partial
from itertools import count

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.errors import DeltaHubError
from deltahub.reference import Reference
from deltahub.registry import gc, gc_state
from deltahub.registry.edits import remove, set_alias, undo
from deltahub.registry.following import beginning
from deltahub.registry.gc import collect, used
from deltahub.registry.mirror import copy
from deltahub.registry.publish import Publication, Published, publish, publish_many
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key
from tests.checkpoints import save_checkpoint
from tests.clocks import clock
from tests.registry.test_concurrent_renames import Interleaved, RepositoryLocks

NAMES = [Reference.parse(f"acme/{name}") for name in ("ner", "nli", "qa")]
ACTIONS = ["push", "push", "many", "alias", "undo", "remove", "rename", "rename", "collect", "collect", "copy"]


class Stepping(Interleaved):
    """A store that anybody may use also between two objects of somebody else, and between a list and what is done with it."""

    def create(self, sources, progress=None):
        for sha256, source in sources.items():
            self._turns.step()
            super().create({sha256: source}, progress)

    def delete(self, key):
        self._turns.step()
        super().delete(key)

    def keys(self, prefix):
        self._turns.step()
        return super().keys(prefix)


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    root = tmp_path_factory.mktemp("contents")
    folders = [save_checkpoint(root / f"{value}", value=value) for value in range(4)]
    return [(checkpoint.describe(folder), folder) for folder in folders]


def act(registry, mirror, chance, contents):
    """Do one thing, and return the documents that were acknowledged."""
    one, other = chance.sample(NAMES, 2)
    action = chance.choice(ACTIONS)
    if action == "many":
        done = publish_many(registry, [Publication(name, *chance.choice(contents)) for name in (one, other)])
        return [published.document for published in done if isinstance(published, Published)]
    if action in ("collect", "copy"):
        list(copy(registry, mirror)) if action == "copy" else collect(registry, timedelta())
        return []
    changes = {
        "push": lambda: publish(registry, Publication(one, *chance.choice(contents))).document,
        "alias": lambda: set_alias(
            registry, one.path, chance.choice(["champion", "prod"]), chance.choice(["v1", None])
        ),
        "undo": lambda: undo(registry, one.path)[0],
        "remove": lambda: remove(registry, one.path, "v1")[0],
        "rename": lambda: rename(registry, one, other),
    }
    return [changes[action]()]


def deltas(registry):
    """Each delta by its beginning; there is one of each, and all names lead to one."""
    found = {document.name: document for document in map(registry.document, registry.names())}
    by_beginning = {beginning(document): document for document in found.values()}
    assert len(by_beginning) == len(found)
    return by_beginning


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 120, 40))
def test_concurrent_changes_are_neither_lost_nor_applied_twice(first, contents, monkeypatch):
    for seed in range(first, first + 40):
        turns, numbers = RepositoryLocks(seed), count()
        for module in (gc_state, gc):
            monkeypatch.setattr(module, "time", clock(sleep=lambda _, turns=turns: turns.step(), monotonic=lambda: 0.0))
        registry, mirror = Registry(Stepping(turns)), Registry(Stepping(turns))
        for each in (registry, mirror):
            stamp = lambda numbers=numbers: ("2026-01-01T00:00:00Z", f"{next(numbers)}")  # noqa: E731
            monkeypatch.setattr(each, "stamp", stamp)
        publish(registry, Publication(NAMES[0], *contents[0], aliases=["champion"]))
        acknowledged = []

        def work(who, seed=seed, registry=registry, mirror=mirror, acknowledged=acknowledged):
            chance = random.Random(f"{seed} {who}")
            for _ in range(3):
                with contextlib.suppress(DeltaHubError):
                    acknowledged += act(registry, mirror, chance, contents)

        turns.run([partial(work, who) for who in range(3)])

        there = deltas(registry)
        for document in acknowledged:
            assert there[beginning(document)].log[: len(document.log)] == document.log, seed
        for _ in range(2):
            collect(registry, timedelta())
        assert {key for key, _ in registry.store.keys("objects/")} == {object_key(sha256) for sha256 in used(registry)}
        for each in (registry, mirror):
            assert not any(damage for _, damage in verify(each)), seed
        list(copy(registry, mirror))
        assert deltas(mirror).keys() == there.keys(), seed
