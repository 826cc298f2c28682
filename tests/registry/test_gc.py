"""Only what nobody needs goes, only after its time of grace, and whatever happens at the same time."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from datetime import timedelta

import pytest

from deltahub.errors import ConflictError, IntegrityError, StorageError
from deltahub.reference import Reference
from deltahub.registry import gc, gc_state
from deltahub.registry.edits import remove, set_alias
from deltahub.registry.gc import collect, used
from deltahub.registry.gc_state import STATE, State, read_state, write_state
from deltahub.registry.registry import REFS, Registry
from deltahub.registry.verify import verify
from deltahub.stores import local_files
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.clocks import clock
from tests.faults import FULL, INTERRUPT
from tests.faults.disk import Seen, tree_of, write_tree

pytestmark = pytest.mark.slow  # an error at every step

NER = Reference.parse("acme/ner")
NOW = timedelta()


@pytest.fixture
def day(monkeypatch):
    """Sets the day of the month on which a registry thinks it is."""
    return lambda number: monkeypatch.setattr("deltahub.registry.stamps.now", lambda: f"2026-01-{number:02}T00:00:00Z")


@pytest.fixture
def waiting(monkeypatch):
    """Sets how pushes and collections wait."""

    def by(**functions):
        for module in (gc_state, gc):
            monkeypatch.setattr(module, "time", clock(**functions))

    return by


@pytest.fixture
def quick(waiting) -> None:
    """Waiting takes no time, but lets the clock go on."""
    passed = 0.0

    def sleep(seconds):
        nonlocal passed
        passed += seconds

    waiting(sleep=sleep, monotonic=lambda: passed)


def objects(registry) -> set[str]:
    return {key for key, _ in registry.store.keys("objects/")}


def clean(registry) -> bool:
    """Whether every version is whole, and there is one."""
    found = [damage for _, damage in verify(registry)]
    return bool(found) and not any(found)


def removed(registry, publish) -> None:
    """Two versions, of which the first is removed."""
    publish(registry)
    publish(registry, value=0.25)
    remove(registry, "acme/ner", "v1")


def test_unused_objects_are_deleted_after_their_grace_period_and_not_before(anywhere, publish, day):
    day(1)
    removed(anywhere, publish)
    everything = objects(anywhere)
    first = collect(anywhere)
    day(14)
    second = collect(anywhere)

    assert (first.freed, second.freed, first.waiting) == ({}, {}, second.waiting)
    assert first.next == second.next == "2026-01-15T00:00:00Z"
    assert len(first.waiting) == 3  # weights, config, manifest; the card and the backbone are the other version's too
    assert objects(anywhere) == everything
    day(15)
    third = collect(anywhere)
    assert (third.freed, third.waiting, third.next) == (first.waiting, {}, None)
    assert everything - objects(anywhere) == {object_key(sha256) for sha256 in first.waiting}
    assert clean(anywhere)
    assert collect(anywhere).freed == {}


@pytest.mark.parametrize("wrong", ["1970-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])
@pytest.mark.parametrize("first", [True, False])
def test_a_clock_that_is_years_off_deletes_nothing_early_and_keeps_nothing_for_years(
    registry, publish, day, monkeypatch, wrong, first
):
    def years_off():
        monkeypatch.setattr("deltahub.registry.stamps.now", lambda: wrong)

    day(1)
    removed(registry, publish)
    if not first:
        collect(registry)
    years_off()
    assert collect(registry).freed == {}
    day(2)
    assert collect(registry).freed == {}
    day(15)
    assert collect(registry).freed == {}
    day(16)
    assert len(collect(registry).freed) == 3


def test_removing_and_collecting_work_on_a_full_disk(tmp_path, publish, full_disk):
    registry = Registry(LocalStore(tmp_path / "full"))
    publish(registry)
    publish(registry, value=0.25)
    with full_disk():
        remove(registry, "acme/ner", "v1")
        assert len(collect(registry, NOW).freed) == 3
    assert (
        len(list((registry.store.root / "reserve").iterdir())) == 4
    )  # the removal, and three states of the collection


def test_an_alias_can_be_removed_on_a_full_disk_so_that_its_version_can(tmp_path, publish, full_disk):
    registry = Registry(LocalStore(tmp_path / "full"))
    publish(registry, aliases=["champion"])
    with full_disk():
        assert set_alias(registry, "acme/ner", "champion", None).aliases == {}
    assert len(list((registry.store.root / "reserve").iterdir())) == 7
    with full_disk(), pytest.raises(StorageError):
        set_alias(registry, "acme/ner", "champion", "v1")


def test_an_alias_whose_removal_was_written_when_the_disk_was_found_full_is_removed(tmp_path, publish, monkeypatch):
    registry = Registry(LocalStore(tmp_path / "full"))
    publish(registry, aliases=["champion"])
    swap = LocalStore.swap

    def late(store, key, data, expected):
        monkeypatch.undo()
        swap(store, key, data, expected)
        raise StorageError("full") from FULL

    monkeypatch.setattr(LocalStore, "swap", late)
    assert set_alias(registry, "acme/ner", "champion", None).aliases == {}


def test_a_disk_too_full_to_note_every_unused_object_is_freed_a_few_at_a_time(tmp_path, publish, monkeypatch, day):
    registry = Registry(LocalStore(tmp_path / "full"))
    day(1)
    for value in (0.5, 0.25, 0.125):
        publish(registry, value=value)
    for version in ("v1", "v2"):
        remove(registry, "acme/ner", version)
    collect(registry)
    day(20)
    remove(registry, "acme/ner", "v3")
    left = len(objects(registry))
    write, announced = local_files.write_synced, []

    def limited(path, data):  # as if a deletion freed nothing before the last but one
        if len(objects(registry)) > left - 4 and data.count(b"2026-01-") > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)
        announced.append(data.count(b"2026-01-"))

    monkeypatch.setattr(local_files, "write_synced", limited)
    monkeypatch.setattr(gc, "_FEW", 2)
    done = collect(registry)
    assert (len(done.freed), len(done.waiting)) == (6, left - 6)
    assert max(announced[:4]) == 2
    assert read_state(registry.store)[0].condemned.keys() == done.waiting.keys()
    day(21)
    assert collect(registry).freed == {}  # the time of grace of the others goes on from the day when they were found
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2026-02-03T00:00:00Z")
    assert len(collect(registry).freed) == left - 6


def test_the_bytes_that_are_freed_are_counted_exactly(anywhere, publish):
    removed(anywhere, publish)
    orphan = b"what a killed push left"
    anywhere.store.create({(sha256 := _sha256(orphan)): orphan})
    sizes = {key: len(anywhere.store.read(key)) for key in objects(anywhere)}
    done = collect(anywhere, NOW)

    assert done.freed[sha256] == len(orphan)
    assert {object_key(digits): size for digits, size in done.freed.items()} == {
        key: size for key, size in sizes.items() if key not in objects(anywhere)
    }


def test_a_trial_says_the_same_and_changes_nothing(anywhere, publish):
    removed(anywhere, publish)
    before = objects(anywhere)
    trial = collect(anywhere, NOW, dry_run=True)

    assert (objects(anywhere), anywhere.store.read_tagged(STATE)) == (before, None)
    assert collect(anywhere, NOW) == trial


def test_an_empty_or_clean_registry_is_left_alone(anywhere, publish):
    assert collect(anywhere, NOW).freed == {}
    publish(anywhere)
    assert collect(anywhere, NOW).freed == {}
    assert anywhere.store.read_tagged(STATE) is None
    assert clean(anywhere)


def test_an_unused_object_pushed_again_is_kept(anywhere, publish, day):
    day(1)
    removed(anywhere, publish)
    collect(anywhere)
    assert publish(anywhere) == "v3"
    day(28)

    assert collect(anywhere).freed == {}
    assert clean(anywhere)


def test_nothing_is_deleted_while_a_document_cannot_be_read(registry, publish):
    removed(registry, publish)
    publish(registry, "acme/zoo")
    (registry.store.root / "refs/acme/zoo.json").write_bytes(b"{")
    before = objects(registry)
    with pytest.raises(IntegrityError, match="The reference document of acme/zoo is damaged"):
        collect(registry, NOW)
    assert objects(registry) == before


def test_nothing_goes_while_a_manifest_is_gone(anywhere, publish, quick):
    removed(anywhere, publish)
    digest = anywhere.document("acme/ner").versions["v2"].digest
    anywhere.store.delete(object_key(digest.removeprefix("sha256:")))
    before = objects(anywhere)
    with pytest.raises(IntegrityError, match=r"deltahub verify --repair"):
        collect(anywhere, NOW)
    assert objects(anywhere) == before


def test_a_version_that_goes_while_it_is_looked_at_is_no_damage(anywhere, publish, monkeypatch, waiting):
    """Another collection was faster: the version was removed after its document was read, and its manifest is gone."""
    removed(anywhere, publish)
    publish(anywhere, value=0.75)
    gone = anywhere.document("acme/ner").versions["v2"].digest
    manifest = Registry.manifest

    def slow(registry, digest):
        if digest == gone and "v2" in registry.document("acme/ner").versions:
            remove(registry, "acme/ner", "v2")
            registry.store.delete(object_key(digest.removeprefix("sha256:")))
        return manifest(registry, digest)

    monkeypatch.setattr(Registry, "manifest", slow)
    waiting(sleep=lambda seconds: None)
    collect(anywhere, NOW)
    assert [where for where, _ in verify(anywhere)] == ["acme/ner@v3"]
    assert clean(anywhere)


def test_a_collection_that_fails_while_deleting_blocks_no_other(anywhere, publish, monkeypatch):
    removed(anywhere, publish)
    monkeypatch.setattr(type(anywhere.store), "delete", lambda store, key: (_ for _ in ()).throw(StorageError("full")))
    with pytest.raises(StorageError, match="full"):
        collect(anywhere, NOW)
    state, _ = read_state(anywhere.store)
    assert (len(state.condemned), state.sweeping) == (3, {})


def test_a_damaged_state_says_what_is_lost_without_it(anywhere, publish):
    publish(anywhere)
    anywhere.store.swap(STATE, b"{}", None)
    with pytest.raises(IntegrityError, match=r"gc/state\.json .* is damaged: .*Delete it: only the record"):
        collect(anywhere)


# ----- at the same time -----


class Stepping(MemoryStore):
    """A store in which something else happens before one of the calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.at, self.event = 0, 0, lambda: None

    def _step(self):
        self.calls += 1
        if self.calls == self.at:
            self.event()

    def read(self, key):
        self._step()
        return super().read(key)

    def read_tagged(self, key):
        self._step()
        return super().read_tagged(key)

    def create(self, sources, progress=None):
        self._step()
        super().create({sha256: data for sha256, data in sources.items() if object_key(sha256) not in self._data})

    def swap(self, key, data, expected):
        self._step()
        return super().swap(key, data, expected)

    def keys(self, prefix):
        self._step()
        yield from super().keys(prefix)

    def delete(self, key):
        self._step()
        super().delete(key)


def steps_of(publish, action) -> int:
    registry = Registry(Stepping())
    removed(registry, publish)
    registry.store.calls = 0
    action(registry)
    return registry.store.calls


def test_a_push_at_any_moment_of_a_collection_keeps_all_its_objects(publish, waiting):
    """The content of the push is what the collection is about to delete; it may have to wait until that is done."""
    count = steps_of(publish, lambda registry: collect(registry, NOW))
    assert count > 10
    waited = 0
    for step in range(1, count + 1):
        registry, goes_on = Registry(Stepping()), threading.Event()
        removed(registry, publish)

        def push(registry=registry, goes_on=goes_on):
            publish(registry, "acme/zoo")
            goes_on.set()

        def pause(seconds, goes_on=goes_on):
            goes_on.set()
            time.sleep(0.001)

        waiting(sleep=pause)
        pushing = threading.Thread(target=push)

        def event(pushing=pushing, goes_on=goes_on):
            nonlocal waited
            pushing.start()
            goes_on.wait()
            waited += pushing.is_alive()

        registry.store.calls, registry.store.at, registry.store.event = 0, step, event
        collect(registry, NOW)
        pushing.join()
        assert registry.names() == ["acme/ner", "acme/zoo"], step
        assert clean(registry), step
        assert {object_key(sha256) for sha256 in used(registry)} <= objects(registry), step
    assert 0 < waited < count


def test_a_collection_at_any_moment_of_a_push_takes_none_of_its_objects(publish, quick):
    count = steps_of(publish, lambda registry: publish(registry, "acme/zoo"))
    assert count > 5
    for step in range(1, count + 1):
        registry = Registry(Stepping())
        removed(registry, publish)
        registry.store.calls, registry.store.at = 0, step
        registry.store.event = lambda registry=registry: collect(registry, NOW)
        publish(registry, "acme/zoo")
        assert clean(registry), step


def test_a_collection_that_dies_at_any_moment_harms_nothing_and_the_next_one_goes_on(publish, quick):
    class Killed(BaseException):
        pass

    def die():
        raise Killed

    count = steps_of(publish, lambda registry: collect(registry, NOW))
    for step in range(1, count + 1):
        registry = Registry(Stepping())
        removed(registry, publish)
        registry.store.calls, registry.store.at, registry.store.event = 0, step, die
        with contextlib.suppress(Killed):
            collect(registry, NOW)
        assert clean(registry), step
        publish(registry, "acme/zoo")
        assert clean(registry), step
        remove(registry, "acme/zoo", "v1")
        collect(registry, NOW)
        assert objects(registry) == {object_key(sha256) for sha256 in used(registry)}, step


def test_a_collection_during_another_ends_with_one_of_them_giving_way(publish, quick):
    count = steps_of(publish, lambda registry: collect(registry, NOW))
    gave_way = 0
    for step in range(1, count + 1):
        registry = Registry(Stepping())
        removed(registry, publish)
        registry.store.calls, registry.store.at = 0, step
        registry.store.event = lambda registry=registry: collect(registry, NOW)
        try:
            collect(registry, NOW)
        except ConflictError:
            gave_way += 1
        assert clean(registry), step
        assert objects(registry) == {object_key(sha256) for sha256 in used(registry)}, step
    assert 0 < gave_way < count


def test_a_push_waits_for_a_running_collection_and_takes_over_from_a_dead_one(anywhere, publish, waiting, caplog):
    publish(anywhere)
    (sha256, *_) = used(anywhere)
    write_state(anywhere.store, State(1, {}, {sha256: "2026-01-01T00:00:00Z"}, "dead"), None)
    passed, waits = 0.0, 0

    def sleep(seconds):
        nonlocal passed, waits
        passed, waits = passed + 10, waits + 1
        state, etag = read_state(anywhere.store)
        if waits == 3:  # a sign of life
            write_state(anywhere.store, State(2, {}, state.sweeping, "dead"), etag)

    waiting(sleep=sleep, monotonic=lambda: passed)
    assert publish(anywhere) == "v1"
    assert waits == 3 + gc_state.SILENT / 10
    assert "Waiting for a collection in " in caplog.text
    assert read_state(anywhere.store)[0].sweeping == {}


def test_pushes_and_collections_in_many_threads_lose_nothing(anywhere, publish, new_checkpoint, monkeypatch):
    monkeypatch.setattr(gc_state, "PAUSE", 0.001)
    errors: list[BaseException] = []
    start = threading.Barrier(3)

    def work(name):
        start.wait()
        try:
            for _ in range(4):
                version = publish(Registry(anywhere.store), name)
                remove(Registry(anywhere.store), name, version)
            publish(Registry(anywhere.store), name)
        except BaseException as error:  # noqa: BLE001  (a thread's error would be lost)
            errors.append(error)

    def sweep():
        start.wait()
        for _ in range(12):
            with contextlib.suppress(ConflictError):
                collect(Registry(anywhere.store), NOW)

    threads = [threading.Thread(target=work, args=(f"acme/{name}",)) for name in ("ner", "nli")]
    threads.append(threading.Thread(target=sweep))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert clean(anywhere)
    assert [list(anywhere.document(f"acme/{name}").versions) for name in ("ner", "nli")] == [["v5"], ["v5"]]


def test_a_collection_that_is_interrupted_at_any_step_harms_nothing(tmp_path, publish, faults, quick):
    first = Registry(LocalStore(tmp_path / "first"))
    removed(first, publish)
    tree = tree_of(first.store.root)

    def prepare(case):
        write_tree(tree, tmp_path / case)
        return Registry(LocalStore(tmp_path / case))

    registry = prepare("count")
    steps = faults.count(lambda: collect(registry, NOW))
    seen = Seen()
    for case, step, failure in faults.each(steps, INTERRUPT):  # for errors, see tests/faults/test_steps.py
        registry = prepare(case)
        before = {key: registry.store.read(key) for key, _ in registry.store.keys(REFS)}
        with faults.at(step, failure), contextlib.suppress(StorageError, KeyboardInterrupt):
            collect(registry, NOW)
        assert {key: registry.store.read(key) for key, _ in registry.store.keys(REFS)} == before, case
        if not seen.is_new(registry.store.root):
            continue
        assert clean(registry), case
        collect(registry, NOW)
        assert objects(registry) == {object_key(sha256) for sha256 in used(registry)}, case


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()
