"""A process that is killed at any step leaves the old state or the new one, and the next process goes on from there."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from deltahub import checkpoint
from deltahub.bundle import export_bundle, import_bundle
from deltahub.lockfile import Lock, Pin
from deltahub.reference import Reference
from deltahub.registry.collection import collect, used
from deltahub.registry.marking import set_alias, undo
from deltahub.registry.mirror import copy
from deltahub.registry.registry import Registry
from deltahub.registry.removal import remove
from deltahub.registry.renaming import rename
from deltahub.registry.repair import from_registry, repair
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no fork")

NER, NLI = Reference("acme", "ner"), Reference("acme", "nli")


@pytest.fixture(autouse=True)
def still(monkeypatch) -> None:
    """It is always the same time, so that an action repeated is the same; and a dead collection need not be waited for."""
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-01-02T03:04:05Z")
    monkeypatch.setattr("deltahub.registry.sweeping.SILENT", 0.0)


@pytest.fixture
def other(publish) -> Registry:
    """Another registry, with the same two versions and a third."""
    registry = Registry(MemoryStore(), "other")
    publish(registry, aliases=["champion"])
    publish(registry, value=0.25)
    publish(registry, value=0.75)
    return registry


ACTIONS = {
    "push": lambda registry, other, folder, file: registry.publish(NER, checkpoint.describe(folder), folder),
    "alias": lambda registry, other, folder, file: set_alias(registry, "acme/ner", "prod", "v2"),
    "undo": lambda registry, other, folder, file: undo(registry, "acme/ner"),
    "remove": lambda registry, other, folder, file: remove(registry, "acme/ner", "v2"),
    "rename": lambda registry, other, folder, file: rename(registry, NER, NLI),
    "copy": lambda registry, other, folder, file: list(copy(other, registry)),
    "import": lambda registry, other, folder, file: import_bundle(file, registry),
}


@pytest.mark.parametrize("action", ACTIONS)
def test_a_change_that_is_killed_is_done_or_not_and_can_be_repeated(
    tmp_path, publish, new_checkpoint, other, faults, action
):
    folder, file = new_checkpoint(value=0.75), tmp_path / "x.tar"
    export_bundle([(other, NER)], file)

    def act(registry):
        ACTIONS[action](registry, other, folder, file)

    def prepare(case):
        registry = Registry(LocalStore(tmp_path / case))
        publish(registry, aliases=["champion"])
        publish(registry, value=0.25)
        return registry

    registry = prepare("count")
    before = registry.document("acme/ner")
    steps = faults.count(lambda: act(registry))
    after = registry.document("acme/ner")
    assert before != after
    for step in range(1, steps + 1):
        registry = prepare(f"{step}")
        faults.kill(step, lambda registry=registry: act(registry))
        found = registry.document("acme/ner")
        assert found in (before, after), step
        assert {damage for _, damage in verify(registry)} == {None}, step
        if found == before:
            act(registry)
        assert registry.document("acme/ner") == after, step
        assert {damage for _, damage in verify(registry)} == {None}, step


def test_a_collection_that_is_killed_harms_nothing_and_the_next_one_goes_on(tmp_path, publish, faults):
    def prepare(case):
        registry = Registry(LocalStore(tmp_path / case))
        publish(registry)
        publish(registry, value=0.25)
        remove(registry, "acme/ner", "v1")
        return registry

    registry = prepare("count")
    steps = faults.count(lambda: collect(registry, timedelta()))
    for step in range(1, steps + 1):
        registry = prepare(f"{step}")
        faults.kill(step, lambda registry=registry: collect(registry, timedelta()))
        assert list(verify(registry)) == [("acme/ner@v2", None)], step
        collect(registry, timedelta())
        assert {key for key, _ in registry.store.keys("objects/")} == {object_key(sha256) for sha256 in used(registry)}
        assert list(verify(registry)) == [("acme/ner@v2", None)], step


def test_a_repair_that_is_killed_can_be_repeated(tmp_path, publish, other, faults):
    def prepare(case):
        registry = Registry(LocalStore(tmp_path / case))
        publish(registry)
        (entry, *_) = registry.resolve(NER).manifest.files
        registry.store.delete(object_key(entry.sha256))
        return registry

    def mend(registry):
        return list(repair(registry, {"other": from_registry(other)}))

    registry = prepare("count")
    steps = faults.count(lambda: mend(registry))
    for step in range(1, steps + 1):
        registry = prepare(f"{step}")
        faults.kill(step, lambda registry=registry: mend(registry))
        assert [done.damage for done in mend(registry)] == [None], step
        assert list(verify(registry)) == [("acme/ner@v1", None)], step


def test_a_lock_file_or_bundle_whose_writing_is_killed_is_the_old_one_or_the_new_one(tmp_path, other, faults):
    path = tmp_path / "out"
    old, new = (Lock(path, {"acme/ner": Pin("acme/ner", "local", f"v{n}", f"sha256:{str(n) * 64}")}) for n in (1, 2))
    for write in (new.write, lambda: export_bundle([(other, NER)], path)):
        steps = faults.count(write)
        written = path.read_bytes()
        for step in range(1, steps + 1):
            old.write()
            kept = path.read_bytes()
            faults.kill(step, write)
            assert path.read_bytes() in (kept, written), step
            write()
            assert path.read_bytes() == written, step
