"""A mirror has all versions, aliases, tags and history; it can be interrupted, repeated, and brought up to date."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from deltahub.errors import ConflictError, IntegrityError, NotFoundError, StorageError
from deltahub.reference import Digest, Reference
from deltahub.registry.edits import remove, set_alias, set_tags
from deltahub.registry.gc import collect
from deltahub.registry.mirror import copy
from deltahub.registry.reconcile import merged
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.rename import rename
from deltahub.registry.verify import verify
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.faults import INTERRUPT
from tests.faults.disk import Seen

pytestmark = pytest.mark.slow  # every kind of registry


def documents(registry) -> dict[str, bytes]:
    return {key: registry.store.read(key) for key, _ in registry.store.keys(REFS)}


def objects(registry) -> set[str]:
    return {key for key, _ in registry.store.keys("objects/")}


def intact(registry) -> bool:
    return not any(damage for _, damage in verify(registry))


@pytest.fixture
def source(new_registry, publish) -> Registry:
    """Two deltas with history, and one that was renamed."""
    registry = new_registry("source")
    for value in (1, 2, 3):
        publish(registry, value=value, aliases=["champion"], tags=[f"run={value}"])
    remove(registry, "acme/ner", "v1")
    publish(registry, "acme/old")
    rename(registry, Reference.parse("acme/old"), Reference.parse("acme/zoo"))
    return registry


@pytest.fixture
def target(new_registry) -> Registry:
    return new_registry("target")


def test_a_mirror_is_the_same_to_the_last_byte(source, target):
    done = {copied.name: copied for copied in copy(source, target)}

    assert documents(target) == documents(source)
    assert objects(target) <= objects(source)
    assert intact(target)
    assert (done["acme/ner"].versions, done["acme/old"].versions) == (("v2", "v3"), ())
    assert all(copied.changed for copied in done.values())
    assert target.resolve(Reference.parse("acme/old")).document.name == "acme/zoo"


def test_existing_objects_are_not_copied_again(source, target, publish):
    list(copy(source, target))
    assert [(copied.changed, copied.size) for copied in copy(source, target)] == [(False, 0)] * 3
    publish(source, value=4, aliases=["champion"])
    set_tags(source, "acme/zoo", "v1", ["late"], [])
    changed = [(copied.name, copied.versions) for copied in copy(source, target) if copied.changed]

    assert changed == [("acme/ner", ("v4",)), ("acme/zoo", ())]
    assert documents(target) == documents(source)
    assert intact(target)


def test_one_delta_can_be_copied_alone(source, target):
    assert [copied.name for copied in copy(source, target, ["acme/old"])] == ["acme/zoo"]
    assert target.names() == ["acme/zoo"]
    with pytest.raises(NotFoundError):
        list(copy(source, target, ["acme/nothing"]))


def test_deltas_that_only_the_target_has_are_kept(source, target, publish):
    list(copy(source, target))
    publish(target, "acme/mine")
    set_alias(target, "acme/ner", "prod", "v2")
    set_tags(target, "acme/ner", "v3", ["mine"], [])
    publish(source, value=4, aliases=["champion"], tags=["run=4"])
    list(copy(source, target))
    document = target.document("acme/ner")

    assert document.aliases == {"champion": "v4", "prod": "v2"}
    assert document.versions["v3"].tags == ("mine", "run=3")
    assert document.versions["v4"].tags == ("run=4",)
    assert [copied.changed for copied in copy(source, target)] == [False] * 3
    assert intact(target)


def test_other_content_under_one_number_is_a_conflict_and_changes_nothing(source, target, publish):
    for value in (7, 8):
        publish(target, value=value)
    before = documents(target), objects(target)
    digests = [registry.document("acme/ner").versions["v2"].digest for registry in (target, source)]
    with pytest.raises(ConflictError, match=f"acme/ner@v2: expected {digests[0]}, found {digests[1]}"):
        list(copy(source, target))
    assert (documents(target), objects(target)) == before


def test_a_history_that_goes_on_from_here_with_other_content_is_a_conflict_too(source):
    document = source.document("acme/ner")
    forged = replace(document.versions["v2"], digest=Digest("sha256:" + "f" * 64))
    theirs = replace(document, versions={**document.versions, "v2": forged}).with_alias("prod", "v3", "", "")
    with pytest.raises(ConflictError, match="acme/ner@v2"):
        merged(document, theirs, *source.stamp())


def test_versions_removed_in_the_target_stay_removed(source, target):
    list(copy(source, target))
    remove(target, "acme/ner", "v2")
    list(copy(source, target))
    assert list(target.document("acme/ner").versions) == ["v3"]


def test_a_name_never_takes_the_place_of_a_delta(source, target, publish):
    publish(target, "acme/old", value=7)
    with pytest.raises(ConflictError, match="The name acme/old"):
        list(copy(source, target))
    assert target.document("acme/old").versions


def test_damaged_bytes_are_not_copied(source, target):
    (entry, *_) = source.resolve(Reference.parse("acme/ner")).manifest.files
    source.store.delete(object_key(entry.sha256))
    with pytest.raises(IntegrityError, match="in the registry source"):
        list(copy(source, target))
    assert "acme/ner" not in target.names()
    assert intact(target)


class Stopped(Exception):
    pass


class Stepping(MemoryStore):
    """A store that stops at one of the calls that write, or lets something else happen there."""

    def __init__(self, at=0):
        super().__init__()
        self.calls, self.at, self.event = 0, at, self.stop

    def stop(self):
        raise Stopped

    def _step(self):
        self.calls += 1
        if self.calls == self.at:
            self.event()

    def create(self, sources, progress=None):
        self._step()
        super().create({key: data for key, data in sources.items() if object_key(key) not in self._data})

    def swap(self, key, data, expected):
        self._step()
        return super().swap(key, data, expected)

    def read_tagged(self, key):
        self._step()
        return super().read_tagged(key)

    def keys(self, prefix):
        self._step()
        yield from super().keys(prefix)


@pytest.mark.parametrize("new_registry", ["memory"], indirect=True)  # it is the target that stops
def test_a_copy_that_stops_anywhere_goes_on_when_it_is_repeated(source):
    whole = Stepping()
    list(copy(source, Registry(whole)))
    moved = sum(copied.size for copied in copy(source, Registry(MemoryStore())))
    for step in range(1, whole.calls + 1):
        target = Registry(Stepping(step))
        size = 0
        with contextlib.suppress(Stopped):
            for copied in copy(source, target):
                size += copied.size
        assert intact(target), step
        again = sum(copied.size for copied in copy(source, target))
        assert size + again <= moved, step
        assert documents(target) == documents(source), step
        assert intact(target), step


@pytest.mark.parametrize("new_registry", ["memory"], indirect=True)  # it is the target that is collected
def test_a_collection_at_any_moment_of_a_copy_takes_none_of_its_objects(source, monkeypatch):
    from datetime import timedelta

    whole = Stepping()
    list(copy(source, Registry(whole)))
    for step in range(1, whole.calls + 1):
        target = Registry(Stepping(step))
        target.store.event = lambda target=target: collect(target, timedelta())
        list(copy(source, target))
        assert documents(target) == documents(source), step
        assert intact(target), step


def test_a_copy_that_is_interrupted_at_any_step_on_a_disk_can_be_repeated(tmp_path, publish, faults):
    source = Registry(MemoryStore(), "source")
    publish(source, aliases=["champion"])
    target = Registry(LocalStore(tmp_path / "count"), "target")
    steps, seen = faults.count(lambda: list(copy(source, target))), Seen()
    for case, step, failure in faults.each(steps, INTERRUPT):  # for errors, see tests/faults/test_steps.py
        target = Registry(LocalStore(tmp_path / case), "target")
        with faults.at(step, failure), contextlib.suppress(StorageError, OSError, KeyboardInterrupt):
            list(copy(source, target))
        if not seen.is_new(target.store.root):
            continue
        assert intact(target), case
        list(copy(source, target))
        assert documents(target) == documents(source), case
        assert intact(target), case
