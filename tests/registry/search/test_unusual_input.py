"""What is asked of a list or found between the documents may be strange; the list answers all the same."""

from __future__ import annotations

import pytest

from deltahub.checkpoint.checkpoint import describe
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Index


@pytest.fixture
def index(registry, checkpoint_folder, tmp_path) -> Index:
    """The index of a registry with the delta acme/ner."""
    publish(registry, Publication(Reference.parse("acme/ner"), describe(checkpoint_folder), checkpoint_folder))
    return Index(tmp_path / "cache" / "index.sqlite3", registry)


def test_a_copied_document_is_not_listed_as_a_second_delta(index, caplog):
    store = index.registry.store
    store.swap("refs/acme/copy.json", store.read("refs/acme/ner.json"), None)

    assert [line.name for line in index.search(Search())[0]] == ["acme/ner"]
    assert "refs/acme/copy.json cannot be listed: It is the reference document of acme/ner." in caplog.text


@pytest.mark.parametrize("query", [Query("\udcff"), Query(author="\udcff"), Query(tags=("\udcff",))])
def test_a_query_that_no_text_can_contain_finds_nothing(index, query):
    assert index.search(Search(query)) == ([], 0)


def test_a_limit_may_be_larger_than_the_database_counts(index):
    assert len(index.search(Search(limit=10**30))[0]) == 1
