import json

import pytest

from deltahub import (
    AdapterModel,
    BitFitModel,
    CompacterModel,
    LoraModel,
    LowRankAdapterModel,
    ParallelAdapterModel,
)
from deltahub.engine.structure.maps import mapped_classes
from deltahub.engine.structure.names import StructureMap, marked
from deltahub.engine.structure.targets import find_targets
from deltahub.errors import NoMatchError
from tests.backbones import BACKBONES, OPENDELTA, bert, gpt2, llama, original, t5_gated, untouched, vit

TABLES = OPENDELTA / "_tables"
NAMES = json.loads((TABLES / "common_structure.json").read_text())
MODELS = {
    "lora": LoraModel,
    "adapter": AdapterModel,
    "bitfit": BitFitModel,
    "low_rank_adapter": LowRankAdapterModel,
    "compacter": CompacterModel,
    "parallel_adapter": ParallelAdapterModel,
}
DEFAULTS = [
    row
    for row in json.loads((TABLES / "default_insertions.json").read_text())
    if row["delta"] in MODELS and "modified" in row
]


def places(delta):
    """The real names of what a delta modified."""
    return list(delta.insertions)


def expected_name(real, common):
    """What the original says, but for the gated feed-forward that it did not know."""
    if real.endswith(("wi_0", "wi_1")):
        return common.replace("DenseReluDense.wi_0", "gate@").replace("DenseReluDense.wi_1", "w1@")
    return common


@pytest.mark.parametrize("name", NAMES)
def test_common_names_are_those_of_the_original(name):
    backbone = original(name)
    structure = StructureMap.of(backbone)
    rows = NAMES[name]["transform"]

    assert rows.keys() <= {name for name, _ in backbone.named_modules()}
    for real, (common, group, _) in rows.items():
        assert expected_name(real, common) == structure.common_name(real)
        assert structure.group_name(real) is None or structure.group_name(real).endswith(group)
        assert (group is None) == (structure.group_name(real) is None)


@pytest.mark.parametrize("row", DEFAULTS, ids=lambda row: f"{row['backbone']}-{row['delta']}")
def test_default_insertions_are_those_of_the_original(row):
    delta = MODELS[row["delta"]](original(row["backbone"]), **row["kwargs"])
    expected = [name for name, _ in row["modified"]]
    if row["delta"] == "bitfit":  # there a bias is trained in place: the layer has no insertion
        trained = [name.replace(".bitfit", "") for name in row["trainable_after_freeze"]]
        expected = {name.removesuffix(".bias") for name in [*trained, *(f"{name}.bias" for name in expected)]}
        assert expected == set(places(delta))
    elif (row["backbone"], row["delta"]) == ("gpt2", "lora"):
        assert expected == []  # it matched nothing, silently
        assert places(delta) == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    else:
        assert sorted(expected) == sorted(places(delta))
        if (row["backbone"], row["delta"]) != ("opt", "parallel_adapter"):  # there it had no parameters, silently
            assert row["stat"]["delta_parameters"] == delta.get_statistics()["delta_parameters"]


@pytest.mark.parametrize("pattern", ["attn.q", "attn@.q@", "[r]\\d\\.attn\\.q", "[r]block@\\.\\d\\.attn@\\.q@"])
@pytest.mark.parametrize(
    ("backbone", "real"),
    [(bert, "attention.self.query"), (llama, "self_attn.q_proj"), (vit, "attention.q_proj")],
    ids=["bert", "llama", "vit"],
)
def test_a_common_name_means_the_same_part_of_every_architecture(backbone, real, pattern):
    found = find_targets(backbone(), [pattern], common_structure=None)

    assert len(found) == 2
    assert all(target.name.endswith(real) for target in found)


def test_a_part_of_a_fused_layer_is_found_with_its_place():
    q, _ = find_targets(gpt2(), ["attn.q"])
    qv, _ = find_targets(gpt2(), ["attn@.v@", "attn@.q@"])
    whole, _ = find_targets(gpt2(), ["c_attn", "attn.q"])

    assert [(part.label, part.start, part.stop, part.of) for part in q.parts] == [("q", 0, 1, 3)]
    assert [part.label for part in qv.parts] == ["q", "v"]
    assert whole.parts == ()


def test_the_gated_feed_forward_of_t5_has_names():
    gate = find_targets(t5_gated(), ["encoder.block.0.ff.gate"])
    w1 = find_targets(t5_gated(), ["encoder.block.0.ff.w1"])

    assert [target.name for target in gate] == ["encoder.block.0.layer.1.DenseReluDense.wi_0"]
    assert [target.name for target in w1] == ["encoder.block.0.layer.1.DenseReluDense.wi_1"]


def test_real_names_come_before_common_ones():
    # "attention.output" is a real name; "output" of the feed-forward must not slip in through a common one
    found = [target.name for target in find_targets(bert(), ["attention.output"])]

    assert found == [f"bert.encoder.layer.{i}.attention.output" for i in (0, 1)]


def test_common_structure_false_means_real_names_only():
    with pytest.raises(NoMatchError):
        find_targets(bert(), ["attn.q"], common_structure=False)


def test_common_structure_true_means_common_names_only():
    with pytest.raises(NoMatchError):
        find_targets(bert(), ["query"], common_structure=True)


def test_excluded_modules_are_left_out_with_all_inside_them():
    found = find_targets(bert(), ["query"], exclude=["layer.1"])

    assert [target.name for target in found] == ["bert.encoder.layer.0.attention.self.query"]


def test_an_exclusion_stops_at_a_dot():
    backbone = original("bert", num_hidden_layers=11)
    found = find_targets(backbone, ["query"], exclude=["encoder.layer.1"])

    assert len(found) == 10  # not layer 10, which the original left out as well
    assert any("layer.10." in target.name for target in found)


def test_common_names_exclude_too():
    found = find_targets(bert(), ["attn.q"], exclude=["block.0"])

    assert [target.name for target in found] == ["bert.encoder.layer.1.attention.self.query"]


def test_excluding_all_that_a_pattern_means_says_so():
    with pytest.raises(NoMatchError, match=r"left out by exclude_modules=\['encoder'\]"):
        find_targets(bert(), ["query"], exclude=["encoder"])


@pytest.mark.parametrize(("pattern", "near"), [("qeury", "query"), ("attn.k_proj", "attn.k"), ("[r]quer", "query")])
def test_a_pattern_that_matches_nothing_names_the_nearest(pattern, near):
    backbone = bert()

    with untouched(backbone), pytest.raises(NoMatchError) as caught:
        LoraModel(backbone, modified_modules=["key", pattern])

    assert repr(pattern) in str(caught.value)
    assert near in caught.value.nearest


@pytest.mark.parametrize("patterns", [[], [""]])
def test_no_pattern_at_all_is_an_error(patterns):
    with pytest.raises(NoMatchError):
        find_targets(bert(), patterns)


def test_every_map_resolves_the_defaults_of_every_method():
    narrow = {"low_rank_adapter": {"reduction_factor": 4}, "compacter": {"reduction_factor": 4}}
    for make in BACKBONES.values():
        for name, model in MODELS.items():
            assert places(model(make(), **narrow.get(name, {})))


def test_the_families_of_the_maps_are_known():
    assert {"BertModel", "GPT2Model", "T5Model", "LlamaModel", "ViTModel"} <= set(mapped_classes())


@pytest.mark.parametrize(
    ("plain", "expected"),
    [("attn.q", "attn@.q@"), ("block.0.ff", "block@.0.ff@"), ("attn@.q@", "attn@.q@"), ("[r]attn", "[r]attn")],
)
def test_plain_common_names_become_marked_ones(plain, expected):
    assert expected == marked(plain)


@pytest.mark.parametrize(
    ("pattern", "places_in_a_layer"),
    [
        ("attention.query", ["attention.q_proj"]),
        ("output.dense", ["attention.o_proj", "mlp.fc2"]),
        (r"[r]encoder\.layer\.\d\.intermediate\.dense", ["mlp.fc1"]),
    ],
)
def test_an_address_written_with_the_names_of_transformers_4_finds_the_modules(pattern, places_in_a_layer):
    backbone = vit()
    found = [target.name for target in find_targets(backbone, [pattern])]
    assert found == [f"vit.layers.{layer}.{place}" for layer in (0, 1) for place in places_in_a_layer]
    with pytest.raises(NoMatchError):
        find_targets(backbone, [pattern], common_structure=True)
