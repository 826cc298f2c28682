"""What is damaged or gone is fetched again from whoever has the same bytes, and from nobody else."""

from __future__ import annotations

import contextlib

import pytest

from deltahub.cache.cache import Cache
from deltahub.errors import StorageError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.registry.verify import from_registry, repair, verify
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults import FORBIDDEN, FULL, INTERRUPT
from tests.faults.disk import tree_of, write_tree

pytestmark = pytest.mark.slow  # damage of every kind

NER = Reference.parse("acme/ner")


def break_object(registry, sha256, data=b"broken"):
    """Replace an object, or remove it with None."""
    key = object_key(sha256)
    if data is None:
        registry.store.delete(key)
    else:
        registry.store.swap(key, data, registry.store.read_tagged(key)[1])


def objects(registry) -> dict[str, str]:
    found = registry.resolve(NER)
    digests = {entry.path: entry.sha256 for entry in found.manifest.files}
    return {**digests, "manifest": found.entry.digest.removeprefix("sha256:")}


@pytest.fixture
def pair(new_registry, publish):
    """Two registries with the same delta."""
    both = new_registry("mine"), new_registry("theirs")
    for registry in both:
        publish(registry)
    return both


def supplies(registry):
    return {registry.name: from_registry(registry)}


@pytest.mark.parametrize("damage", [b"broken", b"", None], ids=["changed", "empty", "gone"])
def test_all_damage_is_repaired_from_a_registry_that_has_the_same_bytes(pair, damage):
    mine, theirs = pair
    known = objects(mine)
    for sha256 in known.values():
        break_object(mine, sha256, damage)
    (done,) = repair(mine, supplies(theirs))

    assert (done.reference, done.damage) == ("acme/ner@v1", None)
    assert done.repaired == dict.fromkeys(known, "theirs")
    assert list(verify(mine)) == [("acme/ner@v1", None)]
    assert [done.repaired for done in repair(mine, supplies(theirs))] == [{}]


def test_bytes_that_are_damaged_there_too_are_not_taken(pair):
    mine, theirs = pair
    sha256 = objects(mine)["README.md"]
    break_object(mine, sha256)
    break_object(theirs, sha256, b"# Evil\n")
    (done,) = repair(mine, supplies(theirs))

    assert done.repaired == {}
    assert f"README.md is damaged: expected sha256:{sha256}, found sha256:" in done.damage


def test_the_first_place_that_has_intact_bytes_gives_them(pair, new_registry, publish):
    mine, theirs = pair
    third = new_registry("third")
    publish(third)
    sha256 = objects(mine)["README.md"]
    break_object(mine, sha256)
    break_object(theirs, sha256, None)
    (done,) = repair(mine, {**supplies(theirs), **supplies(third)})

    assert (done.repaired, done.damage) == ({"README.md": "third"}, None)


def test_a_cache_that_has_the_bytes_repairs_too(anywhere, publish, tmp_path):
    hub = Hub({"local": anywhere}, Cache(tmp_path / "cache"))
    publish(anywhere)
    hub.pull(NER)
    known = objects(anywhere)
    for sha256 in known.values():
        break_object(anywhere, sha256)
    (done,) = repair(anywhere, hub.supplies(anywhere))

    assert (done.repaired, done.damage) == (dict.fromkeys(known, "the cache"), None)


def test_a_damaged_cache_repairs_nothing(anywhere, publish, tmp_path):
    hub = Hub({"local": anywhere}, Cache(tmp_path / "cache"))
    publish(anywhere)
    folder = hub.pull(NER).folder
    (folder / "README.md").write_bytes(b"x")
    break_object(anywhere, objects(anywhere)["README.md"])
    (done,) = repair(anywhere, hub.supplies(anywhere))

    assert done.repaired == {}
    assert "README.md is damaged" in done.damage


def test_only_the_requested_deltas_are_repaired(pair, publish):
    mine, theirs = pair
    publish(mine, "acme/nli", value=0.25)
    publish(theirs, "acme/nli", value=0.25)
    break_object(mine, objects(mine)["delta.safetensors"])
    assert [done.repaired for done in repair(mine, supplies(theirs), ["acme/nli"])] == [{}]
    assert [damage is None for _, damage in verify(mine)] == [False, True]


def test_no_other_document_replaces_a_damaged_one(registry, new_registry, publish):
    other = new_registry("other")
    publish(registry)
    publish(other)
    (registry.store.root / "refs/acme/ner.json").write_bytes(b"{")
    (done,) = repair(registry, supplies(other))

    assert (done.reference, done.repaired) == ("acme/ner", {})
    assert "The reference document of acme/ner is damaged" in done.damage


@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_repair_that_fails_at_any_step_can_be_repeated(tmp_path, publish, faults, error):
    whole = Registry(MemoryStore(), "whole")
    publish(whole)

    registry = Registry(LocalStore(tmp_path / "first"))
    publish(registry)
    break_object(registry, objects(registry)["README.md"])
    tree = tree_of(registry.store.root)

    def prepare(case):
        write_tree(tree, tmp_path / case)
        return Registry(LocalStore(tmp_path / case))

    registry = prepare("count")
    steps = faults.count(lambda: list(repair(registry, supplies(whole))))
    for case, step, failure in faults.each(steps, error):
        registry = prepare(case)
        with faults.at(step, failure), contextlib.suppress(StorageError, OSError, KeyboardInterrupt):
            list(repair(registry, supplies(whole)))
        assert [done.damage for done in repair(registry, supplies(whole))] == [None], case
        assert list(verify(registry)) == [("acme/ner@v1", None)], case
