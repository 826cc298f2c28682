"""A repair, a lock file or a bundle whose writing is killed at any step can be done again: see `faults/` for all other changes."""

from __future__ import annotations

import shutil

import pytest

from deltahub.hub.lockfile import Lock, Pin
from deltahub.reference import Digest, Reference
from deltahub.registry.bundle import export_bundle
from deltahub.registry.registry import Registry
from deltahub.registry.verify import from_registry, repair, verify
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults.disk import write_tree

NER = Reference.parse("acme/ner")


@pytest.fixture(autouse=True)
def still(monkeypatch) -> None:
    """It is always the same time, so that an action repeated is the same; and a dead collection need not be waited for."""
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-01-02T03:04:05Z")
    monkeypatch.setattr("deltahub.registry.gc_state.SILENT", 0.0)


@pytest.fixture
def other(publish) -> Registry:
    """Another registry, with the same two versions and a third."""
    registry = Registry(MemoryStore(), "other")
    publish(registry, aliases=["champion"])
    publish(registry, value=0.25)
    publish(registry, value=0.75)
    return registry


@pytest.mark.slow
def test_a_repair_that_is_killed_can_be_repeated(tmp_path, publish, other, faults):
    def prepare(case):
        registry = Registry(LocalStore(tmp_path / case))
        publish(registry)
        (entry, *_) = registry.resolve(NER).manifest.files
        registry.store.delete(object_key(entry.sha256))
        return registry

    def mend(registry):
        return list(repair(registry, {"other": from_registry(other)}))

    registry = prepare("whole")
    left = faults.killed(registry.store.root, lambda: mend(registry))
    for step, tree in left:
        write_tree(tree, tmp_path / f"{step}")
        registry = Registry(LocalStore(tmp_path / f"{step}"))
        assert [done.damage for done in mend(registry)] == [None], step
        assert list(verify(registry)) == [("acme/ner@v1", None)], step


@pytest.mark.slow
def test_a_lock_file_or_bundle_whose_writing_is_killed_is_the_old_one_or_the_new_one(tmp_path, other, faults):
    folder = tmp_path / "folder"
    path = folder / "out"
    old, new = (
        Lock(path, {"acme/ner": Pin("acme/ner", "local", f"v{n}", Digest(f"sha256:{str(n) * 64}"))}) for n in (1, 2)
    )
    folder.mkdir()
    for write in (new.write, lambda: export_bundle([(other, NER)], path)):
        old.write()
        kept = path.read_bytes()
        left = faults.killed(folder, write)
        written = path.read_bytes()
        for step, tree in left:
            shutil.rmtree(folder)
            write_tree(tree, folder)
            assert path.read_bytes() in (kept, written), step
            write()
            assert path.read_bytes() == written, step
