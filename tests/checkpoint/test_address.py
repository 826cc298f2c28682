"""Addresses mean the modules that they meant in OpenDelta."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.checkpoint.address import Address, lies_within, matches_any, nearest_names
from deltahub.errors import AddressError

TABLE = json.loads((Path(__file__).parents[1] / "fixtures/opendelta/_tables/addressing.json").read_text("utf-8"))
parts = st.text("abc019_", min_size=1, max_size=3)
names = st.lists(parts, min_size=1, max_size=5).map(".".join)


def test_every_row_of_the_original_s_table_agrees():
    assert len(TABLE) == 240
    wrong = [row for row in TABLE if matches_any(row["key"], row["patterns"]) != row["match"]]

    assert wrong == []


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("query", "encoder.layer.0.attention.self.query", True),
        ("query", "encoder.my_query", False),
        ("query", "query", True),
        ("query", "encoder.query.dense", False),
        ("0.attention", "layer.0.attention", True),
        ("0.attention", "layer.10.attention", False),
        ("", "query", False),
        ("query", "", False),
        ("layer.[01]", "layer.0", False),
        ("[r]layer\\.[01]", "encoder.layer.0", True),
        ("[r]layer\\.[01]", "encoder.layer.0.dense", False),
        ("[r]ayer\\.0", "layer.0", False),
        ("[r][0-5]\\.attention", "layer.10.attention", False),
        ("[r]", "query", False),
        ("[r].*", "a.b", True),
        ("[r]x*", "query", False),
    ],
)
def test_a_pattern_means_the_last_parts_of_a_name(pattern, name, expected):
    assert Address(pattern).matches(name) == expected


def test_a_bad_expression_is_an_error_that_says_what_to_correct():
    with pytest.raises(AddressError, match=r"'\[r\]\(query' is not a regular expression: missing \)") as caught:
        Address("[r](query").matches("query")

    assert "Correct what follows '[r]'." in str(caught.value)


@given(names, st.data())
def test_any_number_of_last_parts_means_the_name(name, data):
    count = data.draw(st.integers(1, len(name.split("."))))

    assert Address(".".join(name.split(".")[-count:])).matches(name)


@given(names, names)
def test_a_plain_pattern_matches_exactly_the_names_whose_last_parts_it_is(pattern, name):
    wanted, found = pattern.split("."), name.split(".")

    assert Address(pattern).matches(name) == (found[-len(wanted) :] == wanted)


@given(names, parts)
def test_a_longer_first_part_is_another_name(name, more):
    assert not Address(name).matches(f"{more}{name}") or f"{more}{name}" == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("layer.0", True), ("layer.0.dense.weight", True), ("layer.1.dense", False), ("layer", False)],
)
def test_children_of_a_module_are_inside_it(name, expected):
    assert lies_within(name, ["head", "0"]) == expected


def test_patterns_may_be_an_iterator():
    assert lies_within("layer.0.dense", iter(["nothing", "layer.0"]))


def test_no_pattern_means_no_module():
    assert not matches_any("query", [])


def test_the_nearest_names_are_cut_to_the_parts_of_the_pattern():
    known = ["encoder.layer.0.query", "encoder.layer.1.query", "encoder.layer.0.value", ""]

    assert nearest_names("qeury", known) == ("query",)
    assert nearest_names("0.qeury", known) == ("0.query", "1.query")


def test_a_name_like_no_other_has_no_neighbours():
    assert nearest_names("zzz", ["query", "value"]) == ()
