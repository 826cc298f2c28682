"""The front matter of a card is what JSON can hold, or a sentence; no card takes long or fails in a way of its own."""

from __future__ import annotations

import json

import pytest

from deltahub.text.front_matter import front_matter


def card(head: str) -> str:
    return f"---\n{head}\n---\n# A card\n"


@pytest.mark.parametrize(
    "head",
    [
        "a: !!bool x",
        'a: !!int ""',
        'a: !!float ""',
        "a: !!timestamp x",
        "a: 2001-99-99",
        "a: !!python/name:os.system",
        "a: " + "1_" * 5000,
    ],
)
def test_a_value_that_does_not_match_its_tag_is_reported(head):
    with pytest.raises(ValueError, match=r"\S"):
        front_matter(card(head))


@pytest.mark.parametrize(
    "head", ["a: 0x" + "f" * 20_000, "a: " + "1:" * 5000 + "1", "a: -0x" + "f" * 20_000, "a: .nan", "a: 2026-01-01"]
)
def test_every_value_can_be_written_as_json(head):
    found = front_matter(card(head))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert isinstance(found["a"], str)


@pytest.mark.parametrize(
    "head",
    [
        "a: " + "[" * 41 + "]" * 41,
        ("a: " + "[" * 300 + "]" * 300 + "\n") * 100,
        "- " * 30_000,
        "? " * 30_000,
        "{" * 60_000,
    ],
)
def test_deep_nesting_is_refused_before_parsing(head):
    with pytest.raises(ValueError, match="40 levels"):
        front_matter(card(head))


def test_reasonable_nesting_is_read():
    assert json.dumps(front_matter(card("a: " + "[" * 39 + "]" * 39))["a"]) == "[" * 39 + "]" * 39


def test_aliases_are_refused_in_every_position():
    for head in ("a: &x [1]\nb: *x", "a: &x {b: 1}\nc: {<<: *x}", "&x a: *x"):
        with pytest.raises(ValueError, match="aliases are not read"):
            front_matter(card(head))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_as_on_any_system_and_norwegian_is_a_language(end):
    head = "license: mit\nlanguage:\n- en\n- no\ntags: [on, y, 'true']\ngated: false\nfine: True"
    said = {"license": "mit", "language": ["en", "no"], "tags": ["on", "y", "true"], "gated": False, "fine": True}
    assert front_matter(card(head).replace("\n", end)) == said
