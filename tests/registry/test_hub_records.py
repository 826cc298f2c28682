"""Documents of a hub, whatever their kind: none is read that is not what was written under its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltahub.errors import IntegrityError
from deltahub.registry.hub_records import KINDS
from deltahub.registry.verify import verify
from deltahub.stores.memory import MemoryStore
from tests.faults.hub_documents import flipped, key_of, replace, store_one_of_each


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    """One document of each kind, and no delta."""
    (tmp_path / "part").write_bytes(b"part")
    return store_one_of_each(MemoryStore(), tmp_path / "part")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.schema)
def test_a_document_with_any_bit_flipped_is_not_read(store, kind):
    key = key_of(store, kind)
    data = store.read(key)
    assert kind.parse(key, data)
    for other in flipped(data):
        with pytest.raises(IntegrityError, match=f"^{key} is damaged: expected {kind.subject}, found "):
            kind.parse(key, other)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.schema)
def test_a_document_that_is_cut_longer_or_in_another_s_place_is_not_read(store, kind):
    key = key_of(store, kind)
    data = store.read(key)
    for other in (*(data[:length] for length in range(len(data))), data + b"\n", data + data):
        with pytest.raises(IntegrityError, match="is damaged"):
            kind.parse(key, other)
    with pytest.raises(IntegrityError, match=f"found the one of {key}"):
        kind.parse(f"{key}x", data)


def test_verify_names_every_damaged_document_and_says_what_to_do(anywhere, tmp_path):
    (tmp_path / "part").write_bytes(b"part")
    store = store_one_of_each(anywhere.store, tmp_path / "part")
    assert list(verify(anywhere)) == []
    for kind in KINDS:
        key = key_of(store, kind)
        replace(store, key, next(flipped(store.read(key))))
    found = dict(verify(anywhere))
    assert list(found) == [key_of(store, kind) for kind in KINDS]
    for kind, (key, damage) in zip(KINDS, found.items(), strict=True):
        assert damage.startswith(f"{key} is damaged: expected {kind.subject}, found ")
        assert damage.endswith(kind.remedy)
