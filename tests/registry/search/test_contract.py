"""Every kind of catalogue finds the same, keeps up with every change, and can be dropped; without its database a hub reads from the store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from deltahub.errors import ConfigError
from deltahub.reference import DeltaPath, Digest, Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.edits import remove, set_alias
from deltahub.registry.entries import Version
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.search import from_journal
from deltahub.registry.search.catalogue import Catalogue, open_catalogue
from deltahub.registry.search.conditions import Metric, Query, Search
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.registry.search.catalogues import KINDS, catalogue

WORDS = ["50%", "a_b", "back\\slash", "quo'te", 'dou"ble', "\u00e9t\u00e9", "nul\0l", "\u4e2d\u6587", "{braces}", "%s"]


def push(registry: Registry, name: str, message: str = "", tags: tuple[str, ...] = (), **summary: object) -> None:
    """Add a version, without its objects."""

    def change(document: ReferenceDocument) -> ReferenceDocument:
        digest = Digest.of(f"{name} {len(document.log)}".encode())
        facts = {"backbone_record": None, **summary}
        return document.with_version(Version(digest, registry.stamp()[0], "ada", message, tags, facts))[0]

    registry.update(DeltaPath(name), change, may_create=True)


def fill(registry: Registry) -> None:
    for number, word in enumerate(WORDS):
        tags = ("even", f"n={number}") if number % 2 == 0 else ()
        push(registry, f"acme/d{number}", f"about {word}", tags, delta_type="lora", size=number, metrics={"f1": number})


def names(found: Catalogue, limit: int | None = None, offset: int = 0, **query: object) -> list[str]:
    lines, total = found.search(Search(Query(**{"sort": "name", **query}), limit, offset))
    assert limit is not None or total == len(lines) + offset or offset
    return [line.name.name for line in lines]


@pytest.fixture(scope="module", params=KINDS)
def full(request, tmp_path_factory) -> Catalogue:
    """A catalogue that is only read."""
    registry = Registry(MemoryStore())
    fill(registry)
    return catalogue(request, registry, tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("word", WORDS)
def test_a_word_of_any_characters_is_found_as_it_is(full, word):
    assert names(full, text=word) == [f"d{WORDS.index(word)}"] or word == "nul\0l"
    assert names(full, text=word.upper() if word.isascii() else word) == names(full, text=word)
    assert names(full, text=f"{word} elsewhere") == []


def test_conditions_are_joined_and_pages_counted(full):
    assert names(full, text="about", tags=("even",), metrics=(Metric.parse("f1>3"),)) == ["d4", "d6", "d8"]
    assert names(full, tags=("even", "n=4"), delta_type="lora", author="ada") == ["d4"]
    assert names(full, hidden=("acme/d4", "acme/none"), tags=("even",)) == ["d0", "d2", "d6", "d8"]
    assert full.search(Search(Query(tags=("even",)), limit=2))[1] == 5
    assert full.search(Search(Query(), limit=0))[1] == len(WORDS)
    assert names(full, limit=2, offset=10**30) == []


@pytest.mark.parametrize("sort", ["size", "f1"])
def test_pages_in_any_order_are_parts_of_the_whole(full, sort):
    whole = names(full, sort=sort)
    assert whole == [f"d{number}" for number in reversed(range(len(WORDS)))]
    assert names(full, sort=sort, reverse=True) == whole[::-1]
    assert [name for offset in range(0, 12, 3) for name in names(full, 3, offset, sort=sort)] == whole


def test_a_line_says_what_the_document_says(full):
    (line,) = full.search(Search(Query(tags=("n=4",))))[0]
    assert (line.name, line.version, line.tags, line.author) == ("acme/d4", "v1", ("even", "n=4"), "ada")
    assert line.summary["metrics"] == {"f1": 4}
    assert line.digest == Digest.of(b"acme/d4 0")


@pytest.fixture(params=KINDS)
def changing(request, tmp_path) -> tuple[Registry, Catalogue]:
    """A registry that changes, and its catalogue."""
    registry = Registry(MemoryStore())
    fill(registry)
    return registry, catalogue(request, registry, tmp_path)


def test_every_change_is_found_by_the_next_search(changing):
    registry, found = changing
    assert len(names(found)) == len(WORDS)
    rename(registry, Reference.parse("acme/d1"), Reference.parse("acme/moved"))
    set_alias(registry, "acme/d2", "champion", "v1")
    push(registry, "acme/d3", "anew", ("fresh",))
    remove(registry, DeltaPath("acme/d5"), "v1")
    assert "d1" not in names(found)
    assert "moved" in names(found)
    assert "d5" not in names(found)
    assert names(found, tags=("fresh",)) == ["d3"]
    assert found.search(Search(Query(text="acme/d2")))[0][0].aliases == {"champion": "v1"}
    assert {facet.name: facet.values for facet in found.facets(Query())}["delta_type"] == (("lora", 8),)


@pytest.mark.parametrize("seed", range(2))
def test_catalogues_of_every_kind_agree_after_any_changes_over_a_journal(request, tmp_path, monkeypatch, seed):
    monkeypatch.setattr(from_journal, "SMALL", 2)
    monkeypatch.setattr(from_journal, "LONG", 3)
    registry, chosen = Registry(MemoryStore()), random.Random(seed)
    found = [catalogue(request, registry, tmp_path / kind, kind) for kind in KINDS]
    for step in range(25):
        number = chosen.randrange(6)
        push(registry, f"acme/d{number}", f"step {step}", (f"n={number}",), metrics={"f1": step})
        if chosen.random() < 0.6:
            which = chosen.choice(found)
            documents = [registry.document(path) for path in registry.names()]
            expected = {document.name: document.latest for document in documents}
            assert {line.name: line.version for line in which.search(Search())[0]} == expected
    first, second = (each.search(Search(Query(sort="f1"))) for each in found)
    assert first == second


# ----- PostgreSQL alone -----


@pytest.fixture
def location(postgres) -> str:
    return postgres.new_database()


def test_processes_share_one_catalogue(location, tmp_path, monkeypatch):
    registry = Registry(MemoryStore())
    fill(registry)
    first, second = (open_catalogue(registry, tmp_path / name, location) for name in "ab")
    assert len(names(first)) == len(WORDS)
    read, read_tagged = [], registry.store.read_tagged
    monkeypatch.setattr(registry.store, "read_tagged", lambda key: read.append(key) or read_tagged(key))
    assert names(second) == names(first)
    assert read == []


def test_a_dropped_catalogue_is_rebuilt_also_under_those_who_use_it(location, tmp_path):
    registry = Registry(MemoryStore())
    fill(registry)
    first, second = (open_catalogue(registry, tmp_path / name, location) for name in "ab")
    expected = names(first)
    second.drop()
    assert names(first) == names(second) == expected
    assert not first.failure


def test_registries_in_one_database_are_apart(location, tmp_path):
    one, other = Registry(MemoryStore()), Registry(LocalStore(tmp_path / "other"))
    push(one, "acme/one")
    push(other, "acme/other")
    assert names(open_catalogue(one, tmp_path, location)) == ["one"]
    assert names(open_catalogue(other, tmp_path, location)) == ["other"]


@pytest.mark.slow
def test_while_the_database_is_down_searches_read_from_the_store_and_say_so(
    postgres, location, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("deltahub.registry.search.postgres._PAUSE", 0)
    registry = Registry(MemoryStore())
    fill(registry)
    found = open_catalogue(registry, tmp_path, location)
    assert len(names(found)) == len(WORDS)
    postgres.stop()
    try:
        push(registry, "acme/meanwhile")
        assert "meanwhile" in names(found)
        assert found.failure
        assert "searches read from the store" in caplog.text
        assert found.facets(Query())
    finally:
        postgres.start()
    assert "meanwhile" in names(found)
    assert not found.failure


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("mysql://host/db", "expected postgresql://host/database"),
        ("postgresql://ada:secret@host/db", "must hold no password"),
        ("postgresql://host/db?password=secret", "must hold no password"),
    ],
)
def test_a_location_that_is_not_one_or_holds_a_password_is_refused_without_repeating_it(
    location, message, tmp_path: Path
):
    with pytest.raises(ConfigError, match=message) as raised:
        open_catalogue(Registry(MemoryStore()), tmp_path, location)
    assert "secret@" not in str(raised.value)
    assert "password=secret" not in str(raised.value)
