"""A fingerprint tells two backbones apart, and says in words how they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.checkpoint.backbone_record import (
    EXACT,
    INCOMPATIBLE,
    OTHER_PRECISION,
    OTHER_QUANTISATION,
    OTHER_WEIGHTS,
    RENAMED,
    RESIZED,
    Difference,
    Fingerprint,
    Leaf,
)
from deltahub.checkpoint.quantised_weight import Quantisation, QuantisedWeight
from deltahub.errors import CheckpointError, FingerprintMismatch
from tests.checkpoints import BACKBONE, LEAVES

GOLDEN = Path(__file__).parents[1] / "golden/backbone.v2.json"
EMBED, QUERY, VALUE = LEAVES

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
leaves = st.builds(
    Leaf,
    name=texts,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    hash=st.text("0123456789abcdef", min_size=32, max_size=32),
)
fingerprints = st.lists(leaves, max_size=4, unique_by=lambda leaf: leaf.name).map(
    lambda found: Fingerprint(tuple(sorted(found)))
)


def other(leaf: Leaf, **change: object) -> Leaf:
    return replace(leaf, **{"hash": "f" * 32, **change})


@given(fingerprints)
def test_every_fingerprint_is_read_back_as_it_was_written(fingerprint):
    assert Fingerprint.from_bytes(fingerprint.to_bytes()) == fingerprint


@given(fingerprints, st.randoms())
def test_the_order_of_the_tensors_does_not_matter(fingerprint, random):
    shuffled = list(fingerprint.leaves)
    random.shuffle(shuffled)
    twin = Fingerprint(tuple(shuffled))

    assert (twin.hash, twin.to_bytes()) == (fingerprint.hash, fingerprint.to_bytes())
    assert fingerprint.compare(twin).level == EXACT


@given(fingerprints, fingerprints)
def test_two_fingerprints_are_exact_only_if_they_are_equal(one, two):
    assert (one.compare(two).level == EXACT) == (one == two)


@pytest.mark.parametrize("version", [1, 2])
def test_the_golden_record_is_still_written_and_read(version):
    golden = (GOLDEN.parent / f"backbone.v{version}.json").read_bytes()
    record = replace(BACKBONE, version=version)

    assert record.to_bytes() == golden
    assert Fingerprint.from_bytes(golden) == record
    assert record.hash == "d7474661c20756431f06fe37973b5126"  # by which a registry finds it, whatever its version


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((EMBED, QUERY, VALUE), Difference(EXACT)),
        (
            (EMBED, other(QUERY), VALUE),
            Difference(OTHER_WEIGHTS, "1 of 3 tensors have other values: layer.query.weight"),
        ),
        (
            (EMBED, other(QUERY, dtype="float16"), VALUE),
            Difference(OTHER_PRECISION, "layer.query.weight is float16, expected float32"),
        ),
        (
            (EMBED, QUERY, replace(VALUE, name="v.weight")),
            Difference(RENAMED, "missing layer.value.weight; unexpected v.weight"),
        ),
        (
            (other(EMBED, shape=(12, 4)), QUERY, VALUE),
            Difference(RESIZED, "embed.weight is [12, 4], expected [10, 4]"),
        ),
        (
            (EMBED, QUERY, other(VALUE, shape=(4, 8))),
            Difference(INCOMPATIBLE, "layer.value.weight is [4, 8], expected [4, 4]"),
        ),
        (
            (EMBED, QUERY, other(VALUE, shape=(4, 4, 1))),
            Difference(INCOMPATIBLE, "layer.value.weight is [4, 4, 1], expected [4, 4]"),
        ),
        ((EMBED, QUERY), Difference(INCOMPATIBLE, "missing layer.value.weight")),
        (
            (EMBED, QUERY, VALUE, Leaf("pooler.bias", "float32", (4,), "3" * 32)),
            Difference(INCOMPATIBLE, "unexpected pooler.bias"),
        ),
        (
            (EMBED, QUERY, other(VALUE, name="v.weight")),
            Difference(INCOMPATIBLE, "missing layer.value.weight; unexpected v.weight"),
        ),
        ((), Difference(INCOMPATIBLE, "missing embed.weight, layer.query.weight, layer.value.weight")),
    ],
    ids=lambda value: value.level.replace(" ", "-") if isinstance(value, Difference) else "",
)
def test_each_kind_of_difference_is_reported_with_its_tensors(found, expected):
    assert BACKBONE.compare(Fingerprint(found)) == expected


def test_an_embedding_and_its_bias_may_be_resized_together_but_only_by_the_same_rows():
    bias = Leaf("head.bias", "float32", (10,), "4" * 32)
    expected = Fingerprint((EMBED, bias))
    together = Fingerprint((other(EMBED, shape=(12, 4)), other(bias, shape=(12,))))
    apart = Fingerprint((other(EMBED, shape=(12, 4)), other(bias, shape=(13,))))

    assert expected.compare(together).level == RESIZED
    assert expected.compare(apart).level == INCOMPATIBLE
    assert expected.compare(Fingerprint((EMBED, other(bias, shape=(12,))))).level == INCOMPATIBLE


def test_a_long_list_of_tensors_is_cut():
    many = tuple(Leaf(f"w{number}", "float32", (1,), "5" * 32) for number in range(9))
    changed = tuple(other(leaf) for leaf in many)

    detail = Fingerprint(many).compare(Fingerprint(changed)).detail
    assert detail == "9 of 9 tensors have other values: w0, w1, w2 and 6 more"


NF4 = Quantisation("bitsandbytes nf4", 4, "bfloat16", '{"blocksize":64}', ("weight", "weight.absmax"))
PARTS = (Leaf("q.weight", "uint8", (8, 1), "1" * 32), Leaf("q.weight.absmax", "float32", (1,), "2" * 32))
QUANTISED = Fingerprint((VALUE, *PARTS), 3, (QuantisedWeight("q.weight", (4, 4), NF4, (0.25, -1e-07)),))


def test_the_record_of_a_quantised_backbone_is_read_back_and_covers_its_settings():
    assert Fingerprint.from_bytes(QUANTISED.to_bytes()) == QUANTISED
    settings = replace(NF4, settings='{"blocksize":128}')
    other = replace(QUANTISED, quantised=(replace(QUANTISED.quantised[0], quantisation=settings),))
    assert other.hash != QUANTISED.hash
    assert QUANTISED.compare(other) == Difference(OTHER_QUANTISATION, "blocksize is 128, expected 64 in 1 layers")
    without = replace(QUANTISED, quantised=(replace(QUANTISED.quantised[0], samples=()),))
    assert without.hash == QUANTISED.hash

    document = json.loads(QUANTISED.to_bytes())
    document["quantised"][0][1] = 7
    with pytest.raises(CheckpointError, match=r"backbone\.json is malformed"):
        Fingerprint.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("turned", [False, True])
def test_a_quantised_backbone_and_a_dense_one_are_told_apart_in_words(turned):
    dense = Fingerprint((Leaf("q.weight", "bfloat16", (4, 4), "3" * 32), VALUE))
    sides = (dense, QUANTISED) if turned else (QUANTISED, dense)
    difference = sides[0].compare(sides[1])
    assert difference.level == OTHER_QUANTISATION
    assert sorted(difference.detail.removeprefix("it is recorded on ").split(", and this one is "), key=len) == [
        "bfloat16",
        "bitsandbytes nf4",
    ]
    sides[0].require(sides[1], same_weights=False)
    with pytest.raises(FingerprintMismatch, match="--dequantised"):
        sides[0].require(sides[1])
    narrow = replace(dense, leaves=(replace(dense.leaves[0], shape=(4, 2)), VALUE))
    assert QUANTISED.compare(narrow).level == INCOMPATIBLE
    earlier = Fingerprint((*PARTS, VALUE))
    assert earlier.compare(dense).detail.startswith("it is recorded on quantised weights (saved by an earlier release)")


HARD = {
    RENAMED: (replace(EMBED, name="e"), QUERY, VALUE),
    RESIZED: (other(EMBED, shape=(9, 4)), QUERY, VALUE),
    INCOMPATIBLE: (),
}
SOFT = {OTHER_WEIGHTS: (other(EMBED), QUERY, VALUE), OTHER_PRECISION: (other(EMBED, dtype="int8"), QUERY, VALUE)}


@pytest.mark.parametrize("level", [*HARD, *SOFT])
def test_another_backbone_is_refused_with_both_fingerprints(level):
    found = Fingerprint({**HARD, **SOFT}[level])
    with pytest.raises(FingerprintMismatch) as caught:
        BACKBONE.require(found)
    assert caught.value.args == (level, BACKBONE.compare(found).detail, BACKBONE.hash, found.hash)


@pytest.mark.parametrize("level", SOFT)
def test_other_values_of_the_same_shape_are_accepted_on_the_caller_s_word(level):
    BACKBONE.require(Fingerprint(SOFT[level]), same_weights=False)


@pytest.mark.parametrize("level", HARD)
def test_another_structure_never_is(level):
    with pytest.raises(FingerprintMismatch):
        BACKBONE.require(Fingerprint(HARD[level]), same_weights=False)


def test_every_flipped_byte_of_the_record_is_noticed_or_changes_nothing():
    data = GOLDEN.read_bytes()
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            found = Fingerprint.from_bytes(damaged)
        except CheckpointError:
            continue
        assert found == BACKBONE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_a_checkpoint_error(data):
    with pytest.raises(CheckpointError, match=r"backbone\.json is"):
        Fingerprint.from_bytes(data)


@given(st.dictionaries(st.sampled_from(["format_version", "algorithm", "hash", "tensors"]), json_values, max_size=2))
def test_a_record_with_wrong_values_is_a_checkpoint_error(change):
    document = json.loads(GOLDEN.read_bytes())
    change = {key: value for key, value in change.items() if key != "format_version" or value not in (1, 2)}
    if any(document[key] != value for key, value in change.items()):
        with pytest.raises(CheckpointError, match=r"backbone\.json is (malformed|not JSON)"):
            Fingerprint.from_bytes(json.dumps({**document, **change}).encode())


@pytest.mark.parametrize("data", [b"[" * 100_000, GOLDEN.read_bytes().replace(b'"embed.weight"', b'"\\ud800"')])
def test_hostile_json_is_a_checkpoint_error(data):
    with pytest.raises(CheckpointError):
        Fingerprint.from_bytes(data)
