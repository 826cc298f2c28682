"""Many processes that change one registry at once: what each was told is what the registry holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.reference import Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import set_alias
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry, ref_key
from deltahub.stores.base import object_key
from deltahub.stores.memory import MemoryStore
from tests.faults.checking import Entry, check

ALL = "DELTAHUB_FAULTS_ALL" in os.environ
SECONDS = os.environ.get("DELTAHUB_SOAK_SECONDS", "1")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["local", "moto", "seaweed"] if ALL else ["local", "seaweed"])
def test_processes_that_change_one_registry_at_once_lose_nothing_and_invent_nothing(store):
    command = [sys.executable, "-m", "tests.faults.soak", store, "--seconds", SECONDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["push"] > 0
    assert counts["versions checked"] > 0


@pytest.fixture
def told(world, monkeypatch) -> tuple[Registry, list[Entry]]:
    """A registry, and what two who changed it were told."""
    registry = Registry(MemoryStore())
    entries: list[Entry] = []
    for number in range(2):
        monkeypatch.setenv("DELTAHUB_AUTHOR", f"{number}.1")
        folder = world.folders[number]
        manifest = checkpoint.describe(folder)
        published = publish(registry, Publication(Reference.parse("acme/a"), manifest, folder))
        version, new = published.version, published.new
        entry = {"action": "push", "author": f"{number}.1", "name": "acme/a", "version": version, "new": new}
        entries.append({**entry, "digest": manifest.digest, "start": 0.0, "end": 1.0})
    monkeypatch.setenv("DELTAHUB_AUTHOR", "0.2")
    set_alias(registry, "acme/a", "prod", "v1", expect=None)
    entry = {"action": "expect", "author": "0.2", "name": "acme/a", "alias": "prod", "version": "v1", "expect": None}
    return registry, [*entries, {**entry, "start": 1.0, "end": 2.0}]


def edit(registry: Registry, change) -> None:
    key = ref_key("acme/a")
    document = ReferenceDocument.from_bytes(registry.store.read(key))
    registry.store._data[key] = change(document).to_bytes()


def lost_push(registry, entries):
    edit(registry, lambda document: ReferenceDocument("acme/a", {"v1": document.versions["v1"]}, {}, document.log[:1]))


def lost_alias(registry, entries):
    edit(registry, lambda document: ReferenceDocument("acme/a", document.versions, {}, document.log[:2]))


def changed_version(registry, entries):
    entries[0]["digest"] = f"sha256:{'0' * 64}"


def alias_that_nobody_wrote(registry, entries):
    edit(registry, lambda document: document.with_alias("other", "v1", "now", "9.9"))


def refused_but_done(registry, entries):
    entries[2]["error"] = "ConflictError"


def lost_race(registry, entries):
    entries[2]["expect"] = "v2"


def damaged_object(registry, entries):
    del registry.store._data[object_key(entries[0]["digest"].removeprefix("sha256:"))]


def damage_that_was_seen(registry, entries):
    entries.append({"action": "verify", "author": "1.2", "name": "acme/a", "start": 3.0, "end": 4.0})
    entries[-1]["damage"] = {"acme/a@v1": "weights"}


def test_the_check_accepts_a_correct_history(told):
    assert check(*told)["versions checked"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        lost_push,
        lost_alias,
        changed_version,
        alias_that_nobody_wrote,
        refused_but_done,
        lost_race,
        damaged_object,
        damage_that_was_seen,
    ],
)
def test_the_check_finds(told, wrong):
    wrong(*told)
    with pytest.raises(AssertionError):
        check(*told)
