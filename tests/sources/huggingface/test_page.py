"""The page of a repo: the card of the newest version, the tags of its pushes, and what people wrote on the hub."""

from __future__ import annotations

import pytest

from deltahub.sources.huggingface.page import Card, completed_card, page, tags_of
from tests.checkpoints import DOCUMENT

CONFIG = {**DOCUMENT, "metadata": {"license": "mit"}}


def card(text="# A delta\n", **facts):
    return Card({"license": "mit", "tags": ["deltahub", "lora"], **facts}, text).to_bytes()


def made(own, tags=(), theirs=None, before=None, config=CONFIG):
    """The page as a card; `before` is the card of the last push."""
    base = completed_card(before, config) if before else Card()
    return Card.read(page(own, completed_card(own, config), tags, theirs, base))


def test_a_card_that_says_all_is_the_page_to_the_last_byte():
    own = completed_card(card(), CONFIG).to_bytes()
    assert page(own, completed_card(own, CONFIG), (), None, Card()) == own


def test_a_card_without_front_matter_gets_what_the_config_knows():
    got = made(b"# By hand\n")
    assert got.facts["library_name"] == "deltahub"
    assert (got.facts["base_model"], got.facts["base_model_relation"]) == ("bert-tiny", "adapter")
    assert got.facts["license"] == "mit"
    assert got.text == "# By hand\n"


def test_the_tags_of_a_push_are_added_and_of_one_key_only_the_last_stays():
    assert tags_of(made(card(tags=["lora", "task=sst2"]), ["task=mnli", "best"])) == ["lora", "best", "task=mnli"]


def test_tags_of_earlier_pushes_and_of_people_stay():
    first = page(card(), completed_card(card(), CONFIG), ["best"], None, Card())
    edited = Card({**Card.read(first).facts, "tags": [*tags_of(Card.read(first)), "by-people"]}, "# A delta\n")
    got = made(card(text="# Second\n"), ["late"], edited.to_bytes(), card())
    assert tags_of(got) == ["deltahub", "lora", "best", "by-people", "late"]


def test_text_that_people_changed_stays_and_text_that_they_did_not_is_the_new_versions():
    now = card("# Ours, with care\n")
    assert made(card("# New\n"), theirs=now, before=card("# A delta\n")).text == "# Ours, with care\n"
    assert made(card("# New\n"), theirs=card(), before=card()).text == "# New\n"
    assert made(card("# New\n"), theirs=card("\n")).text == "# New\n"


@pytest.mark.parametrize(
    ("before", "now", "new", "expected"),
    [
        ("mit", "mit", "apache-2.0", "apache-2.0"),
        ("mit", "bsd", "mit", "bsd"),
        ("mit", "bsd", "apache-2.0", "apache-2.0"),
        (None, "bsd", None, "bsd"),
        ("mit", None, "mit", None),
        ("mit", "mit", None, None),
    ],
)
def test_of_three_the_side_that_changed_a_fact_decides_it(before, now, new, expected):
    def said(value):
        return Card({"license": value} if value else {}, "").to_bytes()

    got = made(said(new), theirs=said(now), before=said(before), config=DOCUMENT)
    assert got.facts.get("license") == expected


def test_a_repo_of_others_keeps_its_page_and_learns_what_the_delta_is():
    theirs = Card({"pipeline_tag": "text-classification", "license": "bsd"}, "# Written before\n").to_bytes()
    got = made(b"# A delta\n", theirs=theirs, config=DOCUMENT)
    assert got.text == "# Written before\n"
    assert got.facts["pipeline_tag"] == "text-classification"
    assert (got.facts["license"], got.facts["library_name"]) == ("bsd", "deltahub")


def test_a_push_without_changes_leaves_the_page_as_written():
    own = card()
    first = page(own, completed_card(own, CONFIG), ["best", "task=sst2"], None, Card())
    for tags in ((), ("best",), ("task=sst2", "best")):
        assert page(own, completed_card(own, CONFIG), tags, first, completed_card(own, CONFIG)) == first


@pytest.mark.parametrize("broken", [b"---\n- a list\n---\ntext", b"---\na: [\n---\ntext", b"\xff\xfe---\n", b"---\n"])
def test_front_matter_that_cannot_be_read_is_text(broken):
    got = made(broken)
    assert got.facts["library_name"] == "deltahub"


@pytest.mark.parametrize("said", ["no", "\n- en\n- no"])
def test_norwegian_stays_a_language(said):
    got = made(f"---\nlanguage: {said}\n---\n# A delta\n".encode())
    assert got.facts["language"] == ("no" if said == "no" else ["en", "no"])
    assert Card.read(got.to_bytes()).facts["language"] == got.facts["language"]
