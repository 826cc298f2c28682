"""Regular expressions mean what they mean in Python, and never take long."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub import LoraConfig
from deltahub.checkpoint.address import Address
from deltahub.errors import AddressError, ConfigError
from deltahub.text.patterns import LONGEST, MOST, LinearPattern

NAMES = ("a", "b1", "ab.0", "a.b.ab", "10.a_b", "b.aab.1", "A.b")
atoms = st.sampled_from(
    ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", r"\b", "^", "$", "(a|)", "(?:b|ab)", "(?i:A)"]
)
counts = st.sampled_from(["", "", "*", "+", "?", "*?", "+?", "??", "{2}", "{0,2}", "{1,}"])
pieces = st.lists(st.tuples(atoms, counts).map("".join), min_size=1, max_size=4).map("".join)


@given(st.lists(pieces, min_size=1, max_size=2).map("|".join))
def test_a_pattern_matches_where_python_s_own_engine_matches(text):
    try:
        pattern = LinearPattern(text)
    except AddressError:
        return
    for name in NAMES:
        match = re.search(text, name)
        assert pattern.search(name) == (match and match.span())
        assert (pattern.fullmatch(name) is None) == (re.fullmatch(text, name) is None)


@pytest.mark.parametrize("text", ["(([a-z._0-9]+)+)+X", "(.*)*(.*)*(.*)*X", "(?:.?){40}.{40}X"])
def test_a_pattern_that_keeps_a_backtracking_engine_busy_for_ever_is_matched_at_once(text):
    assert not Address(f"[r]{text}").matches("encoder.layer.0.attention.self.query")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(?=a)b", "cannot be matched in linear time"),
        ("(?<!self)query", "cannot be matched in linear time"),
        (r"(a)\1", "cannot be matched in linear time"),
        ("a{,3}", "not read alike"),
        ("[[:alpha:]]", "not read alike"),
        ("a" * (LONGEST + 1), "1001 characters"),
        ("(?:ab|ba|.){900}", "too large"),
        ("((a{100}){100}){100}", "cannot be matched in linear time"),
        ("(", "is not a regular expression"),
    ],
)
def test_a_pattern_that_cannot_be_matched_is_refused_when_the_config_is_made(text, reason):
    for key in ("modified_modules", "exclude_modules", "unfrozen_modules"):
        with pytest.raises(AddressError, match=reason):
            LoraConfig(**{key: [f"[r]{text}"]})


def test_a_name_on_which_engines_differ_is_refused():
    with pytest.raises(AddressError, match="not plain ASCII"):
        Address(r"[r]\w+").matches("étage")


def test_addresses_are_limited_in_number_and_length():
    LoraConfig(modified_modules=["[r]a"] * MOST + ["b"] * 1000)
    with pytest.raises(AddressError, match=f"{MOST} is the limit"):
        LoraConfig(modified_modules=["[r]a"] * (MOST + 1))
    with pytest.raises(ConfigError, match="modified_modules must have at most 100000 items, and has 100001"):
        LoraConfig(modified_modules=["a"] * 100_001)
    with pytest.raises(ConfigError, match="exclude_modules must have at most 4096 items"):
        LoraConfig(exclude_modules=["a"] * 4097)
    with pytest.raises(ConfigError, match="at most 1024 characters"):
        LoraConfig(modified_modules=["a" * 1025])
