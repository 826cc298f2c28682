import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.checkpoint.address import exact_addresses, matches_any
from deltahub.picker.selection import patterns_of, short_addresses

BLOCKS = [f"encoder.layer.{i}.{part}" for i in range(3) for part in ("query", "value", "out.dense")]
EVERY = [*BLOCKS, "pooler.dense", "head.encoder.layer.0.query"]


def meant(addresses, every):
    return [name for name in every if matches_any(name, addresses)]


@pytest.mark.parametrize(
    ("chosen", "addresses"),
    [
        ([name for name in EVERY if name.endswith("query")], ["query"]),
        ([name for name in EVERY if name.endswith("dense")], ["dense"]),
        ([f"encoder.layer.{i}.out.dense" for i in range(3)], ["out.dense"]),
        (["encoder.layer.1.query", "encoder.layer.2.value"], ["1.query", "2.value"]),
        (["head.encoder.layer.0.query"], ["head.encoder.layer.0.query"]),
        ([], []),
    ],
)
def test_the_shortest_addresses_match_exactly_the_chosen_modules(chosen, addresses):
    assert addresses == short_addresses(chosen, EVERY)


def test_a_name_that_is_a_suffix_of_another_needs_its_prefix():
    (address,) = short_addresses(["encoder.layer.0.query"], EVERY)

    assert address == r"[r]^encoder\.layer\.0\.query"
    assert meant([address], EVERY) == ["encoder.layer.0.query"]
    assert [f"{address}$", "pooler.dense"] == [
        *exact_addresses(["encoder.layer.0.query", "pooler.dense"], EVERY).values()
    ]


names = st.lists(
    st.lists(st.sampled_from(["a", "b", "0", "1", "q(x)"]), min_size=1, max_size=4).map(".".join), unique=True
)


@given(names, st.data())
def test_any_choice_among_any_names_comes_back_from_its_addresses(every, data):
    chosen = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []

    for addresses in (short_addresses(chosen, every), exact_addresses(chosen, every).values()):
        assert {*chosen} == {*meant(addresses, every)}
    assert len(short_addresses(chosen, every)) <= len(chosen)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        ([f"layer.{i}.q" for i in range(12)], [("layer.0-11.q", 12)]),
        (["layer.0.q", "layer.2.q", "pooler"], [("layer.0,2.q", 2), ("pooler", 1)]),
        ([f"l.{i}.e.{j}" for i in (0, 1) for j in (3, 4)], [("l.0-1.e.3-4", 4)]),
        (["layer.7.q"], [("layer.7.q", 1)]),
        (["w1", "w2"], [("w1", 1), ("w2", 1)]),
    ],
)
def test_block_numbers_are_shown_together(names, patterns):
    assert patterns == patterns_of(names)
