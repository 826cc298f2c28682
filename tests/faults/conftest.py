"""A small registry, and time that stands still so that an action repeated is the same."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.actions import World


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is always the same moment, and nobody waits for those who were killed."""
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-01-02T03:04:05Z")
    monkeypatch.setattr("deltahub.registry.sweeping.SILENT", 0.0)
    monkeypatch.setattr("deltahub.stores.claiming.SILENT", 0.0)


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
