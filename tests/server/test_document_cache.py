"""Documents that are kept in memory: every change is seen, and nothing else is read or listed again."""

from __future__ import annotations

import pytest

from deltahub.server.records import PolledDocuments, Record, Records
from deltahub.stores.folder_stamps import TICK
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    return LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore()


def watched(store, clock=None):
    return PolledDocuments(store, "hub/x/", lambda _, data: data.decode(), clock or Clock())


def write(store, name: str, text: str) -> None:
    found = store.read_tagged(f"hub/x/{name}.json")
    store.swap(f"hub/x/{name}.json", text.encode(), found[1] if found else None)


def test_created_replaced_and_deleted_keys_are_visible_at_once(store):
    clock = Clock()
    seen = watched(store, clock)
    assert dict(seen.current()) == {}
    write(store, "b/one", "1")
    write(store, "a/two", "2")
    assert list(seen.current().items()) == [("hub/x/a/two.json", "2"), ("hub/x/b/one.json", "1")]
    for step in range(3):  # also of a folder that was already passed over
        clock.now += TICK
        seen.current()
        before = store.folder_stamp("hub/x/b/")
        write(store, "b/one", f"again {step}")
        while before and store.folder_stamp("hub/x/b/") == before:  # only this clock is fast: the disk's has to move on
            write(store, "b/one", f"again {step}")
        assert seen.current()["hub/x/b/one.json"] == f"again {step}"
    store.delete("hub/x/b/one.json")
    assert dict(seen.current()) == {"hub/x/a/two.json": "2"}


def test_nothing_that_stayed_is_read_again_and_the_answer_is_the_same_object(store, monkeypatch):
    seen = watched(store)
    write(store, "a/one", "1")
    first = seen.current()
    monkeypatch.setattr(type(store), "read_tagged", lambda *_: pytest.fail("it was read again"))
    assert seen.current() is first


def test_a_folder_that_has_not_changed_for_a_while_is_not_listed(tmp_path, monkeypatch):
    store, clock = LocalStore(tmp_path / "store"), Clock()
    seen = watched(store, clock)
    write(store, "a/one", "1")
    seen.current()
    clock.now += TICK
    seen.current()
    monkeypatch.setattr(LocalStore, "keys", lambda *_: pytest.fail("it was listed again"))
    assert dict(seen.current()) == {"hub/x/a/one.json": "1"}


def test_private_names_follow_the_records(store):
    records = Records(store)
    assert records.private() == frozenset()
    for name, private in (("acme/a", True), ("acme/b", False), ("lab/c", True)):
        records.change(name, lambda _, private=private: Record("2026-01-01T00:00:00Z", "ada", private))
    assert records.private() == {"acme/a", "lab/c"}
    assert set(records.all()) == {"acme/a", "acme/b", "lab/c"}
    records.change("acme/a", lambda _: Record("2026-01-01T00:00:00Z", "ada"))
    records.delete("lab/c")
    assert records.private() == frozenset()
