"""The index answers searches and is never the truth: whatever happens to its file, nothing is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import stat
import threading

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.errors import NotFoundError
from deltahub.files.documents import canonical_json, with_checksum
from deltahub.reference import Reference
from deltahub.registry.edits import set_alias, set_tags
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Index


@pytest.fixture
def push(registry, new_checkpoint, monkeypatch):
    """Pushes small deltas, one a minute."""
    minute = 0

    def pushed(name, *, author="ada", message="", tags=(), aliases=(), **content):
        nonlocal minute
        minute += 1
        monkeypatch.setenv("DELTAHUB_AUTHOR", author)
        monkeypatch.setattr("deltahub.registry.stamps.now", lambda: f"2026-01-02T03:{minute:02}:00Z")
        folder = new_checkpoint(**content)
        reference = Reference.parse(name)
        publish(
            registry,
            Publication(reference, checkpoint.describe(folder), folder, tags=tags, aliases=aliases, message=message),
        )

    return pushed


@pytest.fixture
def index(registry, tmp_path) -> Index:
    return Index(tmp_path / "cache" / "index.sqlite3", registry)


def names(index, **query) -> list[str]:
    return [line.name for line in index.search(Search(Query(**query)))[0]]


def test_an_empty_registry_lists_nothing(index):
    assert index.search(Search()) == ([], 0)


def test_a_line_says_what_a_list_shows(index, push):
    push("acme/ner", value=0.25)
    push("acme/ner", tags=["b", "a"], aliases=["champion"], message="better")
    ((line,), total) = index.search(Search())

    assert total == 1
    assert (line.name, line.version, line.tags, line.aliases) == ("acme/ner", "v2", ("a", "b"), {"champion": "v2"})
    assert (line.time, line.author) == ("2026-01-02T03:02:00Z", "ada")
    assert line.summary["delta_type"] == "lora"
    assert line.digest == index.registry.document("acme/ner").versions["v2"].digest


def test_the_newest_comes_first_and_a_limit_still_counts_all(index, push):
    for name in ("acme/b", "acme/a", "acme/c"):
        push(name)

    assert names(index) == ["acme/c", "acme/a", "acme/b"]
    lines, total = index.search(Search(limit=2))
    assert ([line.name for line in lines], total) == (["acme/c", "acme/a"], 3)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"text": "ner"}, ["acme/ner"]),
        ({"text": "ACME"}, ["acme/nli", "acme/ner"]),
        ({"text": "acme nli"}, ["acme/nli"]),
        ({"text": "acme nothing"}, []),
        ({"text": "bert-tiny"}, ["acme/nli", "acme/ner"]),
        ({"text": "sst2"}, ["acme/ner"]),
        ({"text": "100%"}, ["acme/nli"]),
        ({"text": "%"}, ["acme/nli"]),
        ({"text": "_"}, []),
        ({"text": "' OR 1 --"}, []),
        ({"tags": ("task=sst2",)}, ["acme/ner"]),
        ({"tags": ("best",)}, ["acme/nli", "acme/ner"]),
        ({"tags": ("best", "task=sst2")}, ["acme/ner"]),
        ({"tags": ("task",)}, []),
        ({"delta_type": "lora"}, ["acme/nli", "acme/ner"]),
        ({"delta_type": "bitfit"}, []),
        ({"author": "bob"}, ["acme/nli"]),
        ({"author": "bob", "text": "ner"}, []),
    ],
)
def test_every_part_of_a_query_must_hold(index, push, query, expected):
    push("acme/ner", tags=["task=sst2", "best"])
    push("acme/nli", tags=["best"], author="bob", message="100% sure")

    assert names(index, **query) == expected


def test_only_the_newest_version_is_searched(index, push):
    push("acme/ner", tags=["old"])
    assert names(index, tags=("old",)) == ["acme/ner"]
    push("acme/ner", tags=["new"], value=0.25)

    assert (names(index, tags=("old",)), names(index, tags=("new",))) == ([], ["acme/ner"])


def test_changes_are_seen_at_once(index, push, registry):
    push("acme/ner")
    push("acme/nli")
    assert names(index) == ["acme/nli", "acme/ner"]

    set_tags(registry, "acme/ner", None, ["best"], [])
    assert names(index, tags=("best",)) == ["acme/ner"]
    registry.store.delete("refs/acme/nli.json")
    assert names(index) == ["acme/ner"]


def test_only_changed_documents_are_read_again(index, push, registry, monkeypatch):
    for name in ("acme/a", "acme/b"):
        push(name)
    names(index)
    set_alias(registry, "acme/b", "champion", "v1")
    read, read_tagged = [], registry.store.read_tagged
    monkeypatch.setattr(registry.store, "read_tagged", lambda key: read.append(key) or read_tagged(key))

    assert names(index) == ["acme/b", "acme/a"]
    assert read == ["refs/acme/b.json"]


def other_database(path):
    path.unlink()
    with sqlite3.connect(path) as database:
        database.executescript("CREATE TABLE documents (x); PRAGMA user_version = 1;")
    database.close()


def zero_pages(path):
    data = path.read_bytes()
    path.write_bytes(data[:100] + b"\0" * 3996 + data[4096:])


def zero_the_rest(path):
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\0" * (len(data) - 4096))


def break_a_row(path):
    with sqlite3.connect(path) as database:
        database.execute("UPDATE rows SET row = '{'")
    database.close()


def leave_a_journal(path):
    path.write_bytes(b"garbage")
    path.with_name(f"{path.name}-journal").write_bytes(os.urandom(2000))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:5000]),
        other_database,
        zero_pages,
        zero_the_rest,
        break_a_row,
        leave_a_journal,
    ],
    ids=["deleted", "empty", "garbage", "cut", "other-tables", "first-page", "other-pages", "a-row", "journal"],
)
def test_a_damaged_or_deleted_index_loses_nothing(index, push, damage):
    push("acme/ner", tags=["best"])
    push("acme/nli")
    expected = index.search(Search())
    damage(index.path)

    assert index.search(Search()) == expected
    assert index.search(Search()) == expected
    assert names(index, tags=("best",)) == ["acme/ner"]


BROKEN = [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, {"name": 3}, {"aliases": []}, {"log": 3}, {"schema_version": 2}]
BROKEN += [{"versions": versions} for versions in ({}, [], {"x": {}})]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_one_damaged_document_does_not_hide_the_others(index, push, registry, caplog, data):
    push("acme/ner")
    push("acme/nli")
    path = registry.store.root / "refs/acme/ner.json"
    if isinstance(data, dict):
        data = canonical_json({**json.loads(path.read_bytes()), **data})
    path.write_bytes(data)

    with caplog.at_level(logging.WARNING):
        assert names(index) == ["acme/nli"]
    assert "refs/acme/ner.json cannot be listed: The reference document of acme/ner " in caplog.text


def test_a_strange_summary_does_not_hide_the_others(index, push, registry):
    push("acme/ner")
    push("acme/nli")
    path = registry.store.root / "refs/acme/ner.json"
    document = json.loads(path.read_bytes())
    document["versions"]["v1"]["summary"] = {"delta_type": {"a": [1]}, "backbone_class": None}
    path.write_bytes(with_checksum(document))

    assert names(index) == ["acme/nli", "acme/ner"]


def test_other_files_between_the_documents_are_passed_over(index, push, registry, caplog):
    push("acme/ner")
    (registry.store.root / "refs/acme/notes.txt").write_bytes(b"x")

    assert names(index) == registry.names() == ["acme/ner"]
    assert caplog.text == ""


def test_a_cache_that_may_not_be_written_still_lists(registry, push, shared_folder, as_nobody):
    push("acme/ner")
    root = shared_folder / "registry"
    registry.store.root.rename(root)
    index = Index(shared_folder / "cache/index.sqlite3", Registry(type(registry.store)(root)))
    as_nobody()

    assert names(index) == ["acme/ner"]


def test_searches_at_the_same_time_all_see_everything(index, push):
    for number in range(3):
        push(f"acme/d{number}")
    for _ in range(5):
        index.path.unlink(missing_ok=True)
        start, found = threading.Barrier(4), []

        def work(start=start, found=found):
            start.wait()
            found.append(len(names(index)))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [3, 3, 3, 3]


def test_a_page_is_the_same_for_common_and_rare_conditions(index, push, monkeypatch):
    for number in range(5):
        push(f"acme/d{number}", tags=[f"odd={number % 2}"])
    queries = [Query("acme", sort=sort, tags=tags) for sort in ("time", "name", "size") for tags in ((), ("odd=1",))]
    pages = [index.search(Search(query, limit=2, offset=1)) for query in queries]
    monkeypatch.setattr("deltahub.registry.search.index._MANY", 0)
    assert [index.search(Search(query, limit=2, offset=1)) for query in queries] == pages
    assert [total for _, total in pages] == [5, 2] * 3


def test_search_words_of_earlier_versions_are_forgotten(index, push):
    push("acme/ner", message="an early message")
    assert names(index, text="early") == ["acme/ner"]
    push("acme/ner", message="a late message", value=0.25)
    assert (names(index, text="early"), names(index, text="late")) == ([], ["acme/ner"])


def test_an_index_in_a_cache_that_is_not_there_yet_is_shared_as_its_folder_is(shared_folder, registry, push):
    push("acme/ner")
    shared_folder.chmod(0o2775)
    umask = os.umask(0o022)
    try:
        index = Index(shared_folder / "cache/index/one.sqlite3", registry)
        index.refresh()
    finally:
        os.umask(umask)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (index.path.parents[1], index.path.parent, index.path)]
    assert modes == [0o2775, 0o2775, 0o664]


def test_a_namespace_that_may_not_be_read_hides_no_other(index, registry, push, caplog, monkeypatch):
    push("acme/ner")
    push("secret/x")
    scan = os.scandir

    def closed(path):
        if str(path).rstrip("/").endswith("secret"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    index.refresh()
    monkeypatch.setattr(os, "scandir", closed)
    os.utime(registry.store.root / "refs/secret")
    for _ in range(2):
        assert names(index) == ["acme/ner"]
    assert "refs/secret/ cannot be listed: Reading the registry failed" in caplog.text
    with pytest.raises(NotFoundError, match="acme/net"):
        registry.document("acme/net")
