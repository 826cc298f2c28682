"""The power goes at any step: what was acknowledged is there afterwards, and what was not is done or not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from deltahub.cache.cache import Cache
from deltahub.files import durable
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish_many
from deltahub.registry.registry import Registry
from deltahub.registry.signatures import signatures
from deltahub.signing import PrivateKey
from deltahub.stores.local import LocalStore
from tests.faults.actions import ACTIONS, State, World, between, damage_of, state_of
from tests.faults.disk import Disk, Tree, write_tree
from tests.faults.recorder import Recorder
from tests.keys import new_key

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the recorder asks Linux where a file is")

# Look at disks too that differ only in what nobody reads, and after a kill at each step instead of every second.
ALL = "DELTAHUB_FAULTS_ALL" in os.environ
RANDOM = int(
    os.environ.get("DELTAHUB_POWER_RANDOM", "2" if ALL else "1")
)  # random choices of what outlasts, at each step


class Machine:
    """Runs actions on a registry in a folder, and looks at what a power loss leaves of it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self._seen: set[object] = set()
        self._made = 0

    def place(self) -> Path:
        """A folder that is not there yet."""
        self._made += 1
        return self.folder / f"{self._made}"

    def record(self, root: Path, action: str, world: World) -> list:
        """Run an action, and return the steps that it took."""
        recorder = Recorder(root)
        with recorder.recording(self.patch):
            ACTIONS[action](Registry(LocalStore(root)), world)
        return recorder.operations

    def is_new(self, tree: Tree, done: bool) -> bool:
        """Whether this was not looked at before."""
        read = tree.items() if ALL else {(path, None if "claims" in path else data) for path, data in tree.items()}
        key = done, frozenset((path, data) for path, data in read if ALL or not path.startswith("staging"))
        new = key not in self._seen
        self._seen.add(key)
        return new

    def look(self, tree: Tree, allowed: list[State], repeat) -> None:
        """Check what is left after a power loss, and that the action can be repeated."""
        root = self.place()
        write_tree(tree, root)
        registry = Registry(LocalStore(root))
        assert state_of(registry) in allowed
        assert not damage_of(registry)
        if repeat(registry):
            assert state_of(registry) == allowed[-1]
            assert not damage_of(registry)
        shutil.rmtree(root)

    def left(self, disk: Disk, operations: Sequence) -> Iterator[tuple[Registry, bool]]:
        """What a power loss leaves before each step and after the last, and whether all of them were done; each disk once."""
        for step, operation in enumerate([*operations, None]):
            for tree in disk.after_power_loss(step, RANDOM):
                if self.is_new(tree, operation is None):
                    place = self.place()
                    write_tree(tree, place)
                    yield Registry(LocalStore(place)), operation is None
                    shutil.rmtree(place)
            if operation:
                operation(disk)

    @property
    def looked_at(self) -> int:
        """How many different disks."""
        return len(self._seen)


@pytest.fixture
def machine(quick, monkeypatch) -> Machine:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # only the recorder's count
    return Machine(quick, monkeypatch)


def repeated(action: str, world: World, after: State):
    """Repeats an action where it was not done, and returns whether it did; what was done cannot always be done again."""

    def repeat(registry: Registry) -> bool:
        if again := action == "gc" or state_of(registry) != after:
            ACTIONS[action](registry, world)
        return again

    return repeat


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_acknowledged_changes_survive_a_power_loss_and_the_rest_are_done_or_not(machine, world, action):
    root = machine.place()
    registry = world.fill(LocalStore(root))
    before, disk = state_of(registry), Disk.of(root)
    operations = machine.record(root, action, world)
    after = state_of(registry)
    for step in range(len(operations) + 1):
        done = step == len(operations)
        for tree in disk.after_power_loss(step, RANDOM):
            if machine.is_new(tree, done):
                allowed = [after] if done else between(action, before, after)
                machine.look(tree, allowed, repeated(action, world, after))
        if not done:
            operations[step](disk)
    assert machine.looked_at > 2


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_changes_acknowledged_after_a_kill_survive_a_power_loss(machine, world, action):
    """The one who was killed left things that were never synced, and the one who comes after it builds on them."""
    root = machine.place()
    registry = world.fill(LocalStore(root))
    disk = Disk.of(root)
    operations = machine.record(root, action, world)
    after = state_of(registry)
    for step, operation in enumerate(operations):
        operation(disk)
        if step % 2 and not ALL:
            continue
        root = machine.place()
        write_tree(disk.now(), root)
        if action in ("undo", "rm") and state_of(Registry(LocalStore(root))) == after:
            continue  # that would be another one
        later = disk.copy()
        for other in machine.record(root, action, world):
            other(later)
        for tree in later.after_power_loss(0, RANDOM):
            if machine.is_new(tree, True):
                machine.look(tree, [after], lambda registry: False)
    assert machine.looked_at


def test_the_first_push_of_all_makes_a_registry_that_outlasts(machine, world):
    top = machine.place()
    top.mkdir()
    disk, recorder = Disk.of(top), Recorder(top)
    registry = Registry(LocalStore(top / "a" / "registry"))
    with recorder.recording(machine.patch):
        world.push(registry, 0)
    for operation in recorder.operations:
        operation(disk)
    for tree in disk.after_power_loss(0, RANDOM):
        place = machine.place()
        write_tree(tree, place)
        left = Registry(LocalStore(place / "a" / "registry"))
        assert state_of(left) == state_of(registry)
        assert not damage_of(left)
        shutil.rmtree(place)


@pytest.mark.slow
@pytest.mark.parametrize(("many", "syncs"), [(2, 6), (1000, 0)], ids=["one sync", "a sync for each"])
def test_signed_pushes_that_survive_a_power_loss_are_signed(machine, world, tmp_path, monkeypatch, many, syncs):
    monkeypatch.setattr(durable, "MANY", many)
    monkeypatch.setattr(durable, "file_system", lambda _: 0xEF53)
    root = machine.place()
    world.fill(LocalStore(root))
    key, disk, recorder = PrivateKey(new_key(tmp_path / "key.pem")), Disk.of(root), Recorder(root)
    hub = Hub({"local": Registry(LocalStore(root))}, Cache(tmp_path / "cache"))
    with recorder.recording(machine.patch):
        hub.push_many(world.folders[2:], "new", sign=key)
    assert recorder.syncs == syncs  # signatures, their folders, objects, their folders, documents, their folders
    for left, done in machine.left(disk, recorder.operations):
        pushed = {path: left.document(path) for path in left.names() if path.startswith("new/")}
        for document in pushed.values():
            assert list(signatures(left, document.versions["v1"].digest)) == [key.public.id]
        assert not done or len(pushed) == 2


def test_many_pushes_at_once_that_share_a_sync_outlast_too(machine, world, monkeypatch):
    monkeypatch.setattr(durable, "MANY", 2)
    monkeypatch.setattr(durable, "file_system", lambda _: 0xEF53)
    root = machine.place()
    registry = world.fill(LocalStore(root))
    before, disk, recorder = state_of(registry), Disk.of(root), Recorder(root)
    pushed = [Publication(Reference.parse(f"acme/n{n}"), world.manifests[n], world.folders[n]) for n in (2, 3)]
    with recorder.recording(machine.patch):
        publish_many(registry, pushed)
    after = state_of(registry)
    assert recorder.syncs == 4  # objects, their folders, documents, their folders
    for left, done in machine.left(disk, recorder.operations):
        found = state_of(left)
        assert before.items() <= found.items() <= after.items()
        assert not done or found == after
        assert not damage_of(left)
