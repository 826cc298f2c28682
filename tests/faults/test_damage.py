"""Every change of a byte of what a registry needs is found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.registry.gc_state import STATE, State, write_state
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.stores.local import LocalStore
from tests.checkpoints import content_of
from tests.faults.actions import NER, damage_of
from tests.faults.hub_documents import store_one_of_each

EVERY = int(os.environ.get("DELTAHUB_EVERY_BIT", "37"))  # one of so many bits and lengths is tried; 1: all of them


@pytest.fixture
def registry(quick, world) -> Registry:
    """A delta with two versions and an alias, its old name, and the state of a collection; all files may be written."""
    found = Registry(LocalStore(quick / "registry"))
    for number in range(2):
        folder = world.folders[number]
        publish(found, Publication(NER, checkpoint.describe(folder), folder, aliases=["champion"]))
    write_state(found.store, State(1, {"0" * 64: "2026-01-02T03:04:05Z"}), None)
    for path in found.store.root.rglob("*"):
        path.chmod(0o755)
    return found


@pytest.fixture
def served(registry, world) -> Registry:
    """The same, and one document of each kind that a hub keeps. What was uploaded is a file of the delta."""
    store_one_of_each(registry.store, world.folders[0] / "delta.safetensors")
    for path in (registry.store.root / "hub").rglob("*"):
        path.chmod(0o755)
    return registry


def is_damaged(registry: Registry) -> bool:
    """Whether `verify` finds anything; it need not look further then."""
    return any(damage for _, damage in verify(registry))


def changed(registry: Registry) -> Iterator[tuple[Path, bytes]]:
    """Every file of a registry in turn, with what is in it, to be changed; it is put back afterwards."""
    assert not damage_of(registry)
    for name, data in content_of(registry.store.root).items():
        path = registry.store.root / name
        yield path, data
        path.write_bytes(data)
    assert not damage_of(registry)


@pytest.mark.slow
def test_every_bit_that_is_flipped_is_found(served):
    tried = 0
    for path, data in changed(served):
        for bit in range(tried % EVERY, 8 * len(data), EVERY):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert is_damaged(served), (path, bit)
            tried += 1
    assert tried > 1000


def test_every_cut_is_found(served):
    tried = 0
    for path, data in changed(served):
        for length in range(0, len(data), EVERY):
            path.write_bytes(data[:length])
            assert is_damaged(served), (path, length)
            tried += 1
    assert tried > 100


@pytest.mark.parametrize("more", [b"\n", b" ", b"\0", b"{}", bytes(4096)])
def test_every_byte_that_is_appended_is_found(served, more):
    for path, data in changed(served):
        path.write_bytes(data + more)
        assert is_damaged(served), path


def test_files_that_are_exchanged_are_found(served):
    files = list(content_of(served.store.root).items())
    for number, (name, data) in enumerate(files):
        for other, theirs in files[:number]:
            (served.store.root / name).write_bytes(theirs)
            (served.store.root / other).write_bytes(data)
            assert is_damaged(served), (name, other)
            (served.store.root / name).write_bytes(data)
            (served.store.root / other).write_bytes(theirs)
    assert not damage_of(served)


@pytest.mark.parametrize("inside", [[], ["x.json"]], ids=["empty", "full"])
def test_a_folder_in_the_place_of_a_file_is_found(registry, inside):
    for path, _ in changed(registry):
        path.unlink()
        path.mkdir()
        for name in inside:
            (path / name).write_bytes(b"{}")
        assert is_damaged(registry), path
        shutil.rmtree(path)


@pytest.mark.parametrize("target", ["nothing", "another", "itself"])
def test_a_link_in_the_place_of_a_file_is_found_unless_it_leads_to_the_same_bytes(registry, target, quick):
    (quick / "another").write_bytes(b"{}")
    for path, data in changed(registry):
        path.unlink()
        path.symlink_to(path if target == "itself" else quick / target)
        lost = target != "another" and path == registry.store.root / STATE  # it may be missing: nothing is lost with it
        assert bool(damage_of(registry)) != lost, path
        path.unlink()
        (quick / "same").write_bytes(data)
        path.symlink_to(quick / "same")
        assert not damage_of(registry)
        path.unlink()


def test_an_alias_that_was_moved_by_hand_is_found(registry):
    path = registry.store.root / "refs/acme/ner.json"
    path.write_bytes(path.read_bytes().replace(b'"champion":"v2"', b'"champion":"v1"'))
    ((where, damage),) = verify(registry)
    assert where == "acme/ner"
    assert "The reference document of acme/ner is damaged" in damage
    assert "bytes that do not match their recorded checksum" in damage


def test_a_damaged_state_of_a_collection_is_found(registry):
    path = registry.store.root / STATE
    path.write_bytes(path.read_bytes().replace(b'"generation":1', b'"generation":2'))
    assert set(damage_of(registry)) == {STATE}
