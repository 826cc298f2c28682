"""A first index takes its time: who waits for it hears how far it is, and of several processes that want it only one makes it."""

from __future__ import annotations

import contextlib
import logging
import sqlite3

import pytest

from deltahub.registry.edits import set_tags
from deltahub.registry.registry import Registry
from deltahub.registry.search import read_documents, refresh, tables
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Index

NAMES = ["acme/ner", "acme/nli", "zoo/ner"]


@pytest.fixture
def full(registry, publish) -> Registry:
    """A registry with three deltas in two namespaces."""
    for name in NAMES:
        publish(registry, name)
    return registry


@pytest.fixture
def read(full, monkeypatch) -> list[str]:
    """The documents that are read."""
    found, read_tagged = [], full.store.read_tagged
    monkeypatch.setattr(full.store, "read_tagged", lambda key: found.append(key) or read_tagged(key))
    return found


def names(index, told=None) -> list[str]:
    return sorted(line.name for line in index.search(Search(report=told))[0])


def test_the_first_index_reports_each_delta_it_reads(anywhere, publish, tmp_path):
    for name in NAMES:
        publish(anywhere, name)
    index, heard = Index(tmp_path / "index.sqlite3", anywhere), []
    names(index, lambda *said: heard.append(said))
    assert heard == [(0, 3), (1, 3), (2, 3)]

    heard.clear()
    names(index, lambda *said: heard.append(said))
    assert heard == []

    set_tags(anywhere, "zoo/ner", None, ["best"], [])
    names(index, lambda *said: heard.append(said))
    assert heard == [(0, 1)]


def test_while_they_are_listed_the_number_of_deltas_grows(full, tmp_path, monkeypatch):
    monkeypatch.setattr(refresh, "_PAGE", 1)
    heard = []
    names(Index(tmp_path / "index.sqlite3", full), lambda *said: heard.append(said))
    assert heard == [(0, 1), (0, 2), (0, 3), (0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize(("many", "said"), [(3, ["Reading 3 deltas of {} into the search index"]), (4, [])])
def test_many_deltas_to_read_are_logged(full, tmp_path, monkeypatch, caplog, many, said):
    monkeypatch.setattr(read_documents, "MANY", many)
    caplog.set_level(logging.INFO, "deltahub")
    names(Index(tmp_path / "index.sqlite3", full))
    assert [line.message.partition(";")[0] for line in caplog.records] == [text.format(full.place) for text in said]


def test_documents_indexed_by_another_process_are_not_read_again(full, tmp_path, monkeypatch, read):
    path = tmp_path / "index.sqlite3"
    keys, other = full.store.keys, [Index(path, full)]

    def listed(prefix):
        yield from keys(prefix)
        if other:
            assert names(other.pop()) == NAMES  # from start to end while this one looks

    monkeypatch.setattr(full.store, "keys", listed)
    assert names(Index(path, full)) == NAMES
    assert len(read) == 3


def test_an_index_that_another_process_writes_for_long_is_left_to_it(full, publish, tmp_path, monkeypatch):
    index = Index(tmp_path / "index.sqlite3", full)
    names(index)
    before = index.path.stat().st_ino
    publish(full, "zoo/nli")
    monkeypatch.setattr(tables, "INDEX_TIMEOUT", 0)
    with contextlib.closing(sqlite3.connect(index.path)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert names(index) == [*NAMES, "zoo/nli"]
        other.rollback()
    assert index.path.stat().st_ino == before
    assert names(index) == [*NAMES, "zoo/nli"]
