"""A small registry, and time that stands still so that an action repeated is the same."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore
from tests.faults.actions import World
from tests.faults.disk import Tree, tree_of, write_tree
from tests.faults.injection import Faults


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is always the same moment, and nobody waits for those who were killed."""
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-01-02T03:04:05Z")
    monkeypatch.setattr("deltahub.registry.gc_state.SILENT", 0.0)
    monkeypatch.setattr("deltahub.stores.local_files.SILENT", 0.0)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """What actions need beside the registry that they change."""
    return World.build(tmp_path_factory.mktemp("world"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in memory where there is one, which is also the system's temporary folder meanwhile."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="deltahub-", dir=memory if memory.is_dir() else None))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a registry sets aside is there and small: it would be written again with each of the many disks."""
    monkeypatch.setattr("deltahub.files.reserve._SIZE", 16)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Breaks any step in which the library writes to the disk or removes from it."""
    return Faults(monkeypatch, removals=True)


@dataclass(frozen=True)
class Registries:
    """Registries that are all the same, in folders of their own.

    Attributes:
        folder: of all of them.
        filled: the one that they are copies of.
        content: what it holds.
    """

    folder: Path
    filled: Path
    content: Tree

    def new(self, name: str) -> Registry:
        """One more."""
        return self.holding(name, self.content)

    def holding(self, name: str, tree: Tree) -> Registry:
        """One that holds something else."""
        write_tree(tree, self.folder / name)
        return Registry(LocalStore(self.folder / name))

    def drop(self, name: str) -> None:
        """One less."""
        shutil.rmtree(self.folder / name)


@pytest.fixture
def registries(quick: Path, world: World) -> Registries:
    """Copies of the registry that the actions change."""
    world.fill(LocalStore(quick / "filled"))
    return Registries(quick, quick / "filled", tree_of(quick / "filled"))
