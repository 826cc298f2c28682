"""Facets: how many deltas there are of each method, backbone, tag and author among those that a query means."""

from __future__ import annotations

import pytest

from deltahub.checkpoint.checkpoint import describe
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.search.catalogue import Catalogue
from deltahub.registry.search.conditions import Query
from deltahub.registry.search.facets import facets
from tests.registry.search.catalogues import KINDS, catalogue


@pytest.fixture(params=KINDS)
def index(request, registry, tmp_path, new_checkpoint, monkeypatch) -> Catalogue:
    for name, author, backbone, tags in (
        ("acme/a", "ada", "bert", ("x", "task=a")),
        ("acme/b", "ada", "bert", ("x",)),
        ("acme/c", "grace", "t5", ("x", "y")),
        ("acme/d", "grace", "", ()),
    ):
        monkeypatch.setenv("DELTAHUB_AUTHOR", author)
        options = (
            {"backbone_checkpoint_name": backbone}
            if backbone
            else {"backbone_checkpoint_name": "", "backbone_class": ""}
        )
        folder = new_checkpoint(**options, modified_modules=[name])
        publish(registry, Publication(Reference.parse(name), describe(folder), folder, tags=tags))
    return catalogue(request, registry, tmp_path)


def counts(index, limit=8, **query):
    return {facet.name: dict(facet.values) for facet in facets(index, Query(**query), limit)}


def test_every_value_is_counted_and_an_unknown_one_is_none(index):
    assert counts(index) == {
        "delta_type": {"lora": 4},
        "backbone": {"bert": 2, "t5": 1},
        "tags": {"x": 3, "task=a": 1, "y": 1},
        "author": {"ada": 2, "grace": 2},
    }


def test_a_chosen_facet_narrows_only_the_other_facets(index):
    found = counts(index, author="ada")
    assert found["author"] == {"ada": 2, "grace": 2}
    assert found["backbone"] == {"bert": 2}
    assert found["tags"] == {"x": 2, "task=a": 1}


def test_tags_narrow_each_other(index):
    assert counts(index, tags=("y",))["tags"] == {"x": 1, "y": 1}


def test_words_and_hidden_names_narrow_everything(index):
    assert counts(index, text="acme/b")["author"] == {"ada": 1}
    assert counts(index, hidden=("acme/a", "acme/b"))["author"] == {"grace": 2}


def test_the_most_frequent_come_first_and_what_is_asked_for_is_always_there(index):
    found = facets(index, Query(tags=("x", "nobody-has-this")), limit=1)
    tags = next(facet for facet in found if facet.name == "tags")
    assert dict(tags.values) == {"x": 0, "nobody-has-this": 0}
    assert tags.chosen == ("x", "nobody-has-this")
    assert next(facet for facet in facets(index, Query(), limit=1) if facet.name == "backbone").values == (("bert", 2),)
