"""A large namespace has a table of its names: a new one is compared with one shard, and a table that is wrong or gone loses nothing."""

from __future__ import annotations

import pytest

from deltahub.errors import IntegrityError, ReferenceSyntaxError, StorageError
from deltahub.reference import DeltaPath
from deltahub.registry.case_collisions import Names, refuse_twin
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.name_table import NAMES, NameTable
from deltahub.registry.registry import Registry, ref_key
from deltahub.stores.memory import MemoryStore


@pytest.fixture
def registry(monkeypatch) -> Registry:
    """A registry whose namespace has many names: three."""
    monkeypatch.setattr("deltahub.registry.name_table.LARGE", 2)
    registry = Registry(MemoryStore())
    for name in "abc":
        add(registry, f"acme/{name}")
    return registry


def add(registry: Registry, path: str) -> None:
    """Store a document, as a push does once its name is checked."""
    refuse_twin(registry, DeltaPath(path))
    registry.store.swap(ref_key(path), ReferenceDocument(DeltaPath(path)).to_bytes(), None)


def test_a_new_name_lists_no_names_of_its_namespace(registry, monkeypatch):
    add(registry, "acme/d")
    listed, children = [], registry.store.children
    monkeypatch.setattr(registry.store, "children", lambda folder: listed.append(folder) or children(folder))
    add(registry, "acme/e")
    assert Names(registry).twin(DeltaPath("ACME/E")) == "acme/e"
    assert Names(registry).twin(DeltaPath("acme/f")) is None
    assert set(listed) == {"refs/"}
    for twin in ("acme/A", "acme/E", "Acme/new"):
        with pytest.raises(ReferenceSyntaxError, match="differ only in upper and lower case"):
            add(registry, twin)


def test_a_name_whose_push_was_interrupted_is_free_in_any_writing(registry):
    add(registry, "acme/d")
    refuse_twin(registry, DeltaPath("acme/interrupted"))
    add(registry, "acme/Interrupted")
    with pytest.raises(ReferenceSyntaxError):
        add(registry, "acme/interrupted")


def test_twins_among_new_names_are_found(registry):
    names = Names(registry)
    names.add(DeltaPath("acme/d"))
    with pytest.raises(ReferenceSyntaxError, match="'acme/D' and 'acme/d'"):
        names.add(DeltaPath("acme/D"))


def test_a_damaged_shard_is_refused_and_a_deleted_table_is_made_anew(registry):
    add(registry, "acme/d")
    for key, etag in list(registry.store.keys(f"{NAMES}acme/")):
        registry.store.swap(key, b"{}", etag)
    with pytest.raises(IntegrityError, match=r"^names/acme/..\.json is damaged.*Delete names/: it is made anew"):
        add(registry, "acme/A")
    for key, _ in list(registry.store.keys(NAMES)):
        registry.store.delete(key)
    with pytest.raises(ReferenceSyntaxError):
        add(registry, "acme/A")
    assert NameTable.open(registry.store, "acme")


def test_a_store_that_refuses_the_table_is_listed(registry, monkeypatch):
    def refuse(swaps):
        raise StorageError("403")

    monkeypatch.setattr(registry.store, "swap_all", refuse)
    add(registry, "acme/d")
    with pytest.raises(ReferenceSyntaxError):
        add(registry, "acme/A")
    assert list(registry.store.keys(NAMES)) == []
