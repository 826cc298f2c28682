"""Several who change one delta at once, each step of theirs in any order: it stays one delta, with all that was acknowledged."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Callable
from functools import partial
from operator import methodcaller

import pytest

from deltahub.errors import DeltaHubError
from deltahub.reference import Digest, Reference
from deltahub.registry.entries import Version
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.stores.memory import MemoryStore

ALL = "DELTAHUB_FAULTS_ALL" in os.environ  # 600 orders; else every third
NER, NLI = Reference.parse("acme/ner"), Reference.parse("acme/nli")


class RepositoryLocks:
    """Who runs: one thread at a time, another one perhaps at every request to the store."""

    def __init__(self, seed: int) -> None:
        self._chance, self._changed = random.Random(seed), threading.Condition()
        self._running: list[int] = []
        self._turn = -1
        self._me = threading.local()

    def run(self, jobs: list[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=self._job, args=one) for one in enumerate(jobs)]
        self._running = list(range(len(jobs)))
        for thread in threads:
            thread.start()
        with self._changed:
            self._next()
        for thread in threads:
            thread.join()

    def _job(self, number: int, job: Callable[[], None]) -> None:
        self._me.number = number
        try:
            self._wait()
            job()
        finally:
            with self._changed:
                self._running.remove(number)
                self._next()

    def _next(self) -> None:
        self._turn = self._chance.choice(self._running) if self._running else -1
        self._changed.notify_all()

    def _wait(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._turn == self._me.number, timeout=30)

    def step(self) -> None:
        """Perhaps somebody else goes on here."""
        if hasattr(self._me, "number"):
            with self._changed:
                self._next()
            self._wait()


class Interleaved(MemoryStore):
    """A store that anybody may use between two requests of somebody else."""

    def __init__(self, turns: RepositoryLocks) -> None:
        super().__init__()
        self._turns = turns

    def read_tagged(self, key):
        self._turns.step()
        return super().read_tagged(key)

    def swap(self, key, data, expected):
        self._turns.step()
        return super().swap(key, data, expected)


def new_registry(seed: int) -> tuple[Registry, RepositoryLocks]:
    """A registry with one version of one delta."""
    turns = RepositoryLocks(seed)
    registry = Registry(Interleaved(turns))
    first = Version(Digest("sha256:" + "a" * 64), "2026-01-01T00:00:00Z", "ada", "", (), {})
    registry.update(NER.path, lambda document: document.with_version(first)[0], may_create=True)
    return registry, turns


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 600, 150))
def test_a_delta_that_several_rename_and_change_stays_one_and_keeps_what_was_acknowledged(first):
    for seed in range(first, first + 150, 1 if ALL else 3):
        registry, turns = new_registry(seed)
        acknowledged: list[str] = []

        def work(who: int, seed=seed, registry=registry, acknowledged=acknowledged) -> None:
            chance = random.Random(f"{seed} {who}")
            for number in range(3):
                old, new = chance.sample([NER, NLI], 2)
                alias, author = f"of-{who}-{number}", f"{who}.{number}"
                with contextlib.suppress(DeltaHubError):
                    if chance.random() < 0.6:
                        rename(registry, old, new, (registry.stamp()[0], author))
                    else:
                        time = registry.stamp()[0]
                        registry.update(old.path, methodcaller("with_alias", alias, "v1", time, author))
                        acknowledged.append(alias)

        turns.run([partial(work, who) for who in range(5)])

        there = {registry.document(name).name: registry.document(name) for name in registry.names()}
        assert len(there) == 1, (seed, {name: [move.author for move in it.log] for name, it in there.items()})
        (document,) = there.values()
        assert set(acknowledged) <= document.aliases.keys(), seed
        made = [move.author for move in document.log]
        assert len(set(made)) == len(made), (seed, made)  # nothing was done twice
