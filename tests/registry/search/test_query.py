"""Deltas are found by their metrics, in any order, page by page."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltahub.checkpoint import checkpoint
from deltahub.errors import ConfigError
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.search.catalogue import Catalogue
from deltahub.registry.search.conditions import Metric, Query, Search
from deltahub.registry.search.index import Index
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import save_checkpoint
from tests.registry.search.catalogues import KINDS, catalogue

RESULTS = {
    "a/none": None,
    "b/low": {"accuracy": 0.5, "f1": 0.9},
    "c/high": {"accuracy": 0.95},
    "d/one": {"accuracy": 1},
    "e/words": {"accuracy": "0.99 on the easy half"},
    "f/spaced": {"exact match": 0.75, "f1": 0.1},
}


def fill(registry: Registry, folder: Path, patch: pytest.MonkeyPatch) -> Registry:
    """Push deltas with these results, one a minute."""
    patch.setenv("DELTAHUB_AUTHOR", "ada")
    for minute, (name, results) in enumerate(RESULTS.items()):
        content = {"metadata": {"test_result": results}} if results else {}
        checkpoint_folder = save_checkpoint(folder / f"{minute}", value=minute, **content)
        patch.setattr("deltahub.registry.stamps.now", lambda minute=minute: f"2026-01-02T03:{minute:02}:00Z")
        publish(registry, Publication(Reference.parse(name), checkpoint.describe(checkpoint_folder), checkpoint_folder))
    return registry


@pytest.fixture(scope="module", params=KINDS)
def index(request, tmp_path_factory) -> Catalogue:
    """The catalogue of a registry of deltas with these results, which is only read."""
    folder = tmp_path_factory.mktemp("query")
    with pytest.MonkeyPatch.context() as patch:
        return catalogue(request, fill(Registry(MemoryStore()), folder, patch), folder)


def names(index, *conditions, limit=None, offset=0, **query) -> list[str]:
    asked = Query(metrics=tuple(map(Metric.parse, conditions)), **query)
    return [line.name for line in index.search(Search(asked, limit, offset))[0]]


def test_deltas_are_found_and_ordered_in_every_kind_of_registry(anywhere, tmp_path, monkeypatch):
    index = Index(tmp_path / "index.sqlite3", fill(anywhere, tmp_path, monkeypatch))
    assert set(names(index, "accuracy>0.4", "f1>0.5")) == {"b/low"}
    assert "".join(name[0] for name in names(index, sort="accuracy")) == "dcbaef"
    assert names(index, sort="name", limit=2, offset=2) == ["c/high", "d/one"]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["accuracy>0.9"], {"c/high", "d/one"}),
        (["accuracy >= 0.95"], {"c/high", "d/one"}),
        (["accuracy>0.95"], {"d/one"}),
        (["accuracy<0.9"], {"b/low"}),
        (["accuracy<=0.5"], {"b/low"}),
        (["accuracy=1"], {"d/one"}),
        (["accuracy==1.0"], {"d/one"}),
        (["accuracy!=1"], {"b/low", "c/high"}),
        (["accuracy>0.4", "f1>0.5"], {"b/low"}),
        (["exact match>0.5"], {"f/spaced"}),
        (["nothing>0"], set()),
        (["accuracy>-1e9"], {"b/low", "c/high", "d/one"}),
    ],
)
def test_a_metric_must_be_a_number_and_hold(index, conditions, expected):
    assert set(names(index, *conditions)) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "fedcba"),
        ({"reverse": True}, "abcdef"),
        ({"sort": "name"}, "abcdef"),
        ({"sort": "name", "reverse": True}, "fedcba"),
        ({"sort": "accuracy"}, "dcbaef"),
        ({"sort": "accuracy", "reverse": True}, "bcdaef"),
        ({"sort": "f1"}, "bfacde"),
        ({"sort": "parameters"}, "abcdef"),
    ],
)
def test_any_order_puts_those_without_a_value_last(index, query, expected):
    assert "".join(name[0] for name in names(index, **query)) == expected


def test_the_largest_come_first_when_sorted_by_size(index):
    lines, _ = index.search(Search(Query(sort="size")))
    sizes = [line.summary["size"] for line in lines]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 1


def test_pages_follow_each_other_without_a_gap(index):
    pages = [names(index, sort="name", limit=2, offset=offset) for offset in range(0, 8, 2)]

    assert pages == [["a/none", "b/low"], ["c/high", "d/one"], ["e/words", "f/spaced"], []]
    assert index.search(Search(limit=1, offset=5))[1] == 6
    assert names(index, offset=10**30) == []


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy>", ">0.9", "accuracy>high", "accuracy>nan", "accuracy=>1", 'a"b>1', "a'b>1", ""]
)
def test_an_invalid_condition_error_shows_a_valid_one(text):
    with pytest.raises(ConfigError, match=r"as in 'accuracy>0\.9'"):
        Metric.parse(text)


@pytest.mark.parametrize("key", ["", "a'b", 'a"b', "name; DROP TABLE deltas", "\u0430"])
def test_an_invalid_sort_key_is_refused(key):
    with pytest.raises(ConfigError, match="is not a sort key: expected time, name, size, parameters or a metric"):
        Query(sort=key)
