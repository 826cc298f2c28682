"""A union is several methods in one delta."""

import pytest
import torch

from deltahub import AdapterConfig, AdapterModel, AutoDeltaModel, LoraConfig, LoraModel, PrefixModel, UnionModel, diff
from deltahub.errors import ConfigError, MergeError
from tests.backbones import bert, logits_of, stir, untouched

LORA = {"delta_type": "lora", "lora_r": 2}
ADAPTER = {"delta_type": "adapter", "bottleneck_dim": 3}
PREFIX = {"delta_type": "prefix", "prefix_token_num": 2, "embed_dim": 4, "mid_dim": 5}


def test_a_union_computes_the_same_as_its_parts_beside_each_other():
    backbone = bert()
    union = UnionModel(backbone, [LORA, ADAPTER, PREFIX])
    stir(union)
    expected, tensors = logits_of(backbone), dict(union.named_parameters())
    union.remove()

    deltas = [LoraModel(backbone, 2), AdapterModel(backbone, 3), PrefixModel(backbone, 2, embed_dim=4, mid_dim=5)]
    for delta in deltas:
        with torch.no_grad():
            for name, parameter in delta.named_parameters():
                parameter.copy_(tensors.pop(name))
    assert not tensors
    assert torch.equal(expected, logits_of(backbone))


def test_a_union_is_saved_and_loaded_as_one(tmp_path):
    backbone = bert()
    union = UnionModel(backbone, [LORA, {**PREFIX, "modified_modules": ["attn"]}])
    stir(union)
    expected = logits_of(backbone)
    union.save_finetuned(tmp_path)
    union.remove()

    loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=backbone)
    assert isinstance(loaded, UnionModel)
    assert [part["delta_type"] for part in loaded.config.parts] == ["lora", "prefix"]
    assert torch.equal(expected, logits_of(backbone))


def test_a_union_is_merged_where_each_part_can_be():
    backbone = bert()
    union = UnionModel(
        backbone, [LORA, {"delta_type": "ia3", "modified_modules": ["attn.k"], "feedforward_modules": []}]
    )
    stir(union)
    expected = logits_of(backbone)
    union.merge()
    assert torch.allclose(expected, logits_of(backbone), atol=1e-4)

    backbone = bert()
    union = UnionModel(backbone, [LORA, ADAPTER])
    with untouched(backbone), pytest.raises(MergeError, match="cannot be written into"):
        union.merge()


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "has no parts; expected the config of at least one"),
        ([{}], "has delta_type None; expected another delta type"),
        ([{"delta_type": "union", "parts": [LORA]}], "has delta_type 'union'; expected another"),
        ([{"delta_type": "loro"}], "delta_type is 'loro'"),
        ([{**LORA, "lora_rr": 3}], "lora has no option 'lora_rr'"),
        ([{**LORA, "lora_r": 0}], "lora_r must be"),
        ([{**LORA, "unfrozen_modules": ["classifier"]}], "has the option unfrozen_modules, which belongs to the union"),
        ([LORA, {"delta_type": "ia3"}, {**LORA, "lora_r": 4}], "Two parts of a union act on .*attention.self.value"),
    ],
)
def test_parts_that_cannot_work_are_refused(parts, why):
    backbone = bert()
    with untouched(backbone), pytest.raises(ConfigError, match=why):
        UnionModel(backbone, parts)


def test_parts_may_be_configs():
    backbone = bert()
    union = UnionModel(backbone, [LoraConfig(lora_r=2), AdapterConfig(bottleneck_dim=3)])
    assert [part["delta_type"] for part in union.config.parts] == ["lora", "adapter"]
    with pytest.raises(ConfigError, match="belongs to the union"):
        UnionModel(backbone, [LoraConfig(unfrozen_modules=["classifier"])])


def test_the_updates_of_a_union_are_part_of_a_comparison(tmp_path):
    folders = [tmp_path / "one", tmp_path / "other"]
    for seed, folder in enumerate(folders):
        backbone = bert()
        union = UnionModel(backbone, [LORA, {"delta_type": "layer_norm"}])
        stir(union, seed)
        union.save_finetuned(folder)

    found = diff(*folders)
    assert not found.same
    assert any(tensor.name.endswith("query.deltas.lora_A") and tensor.difference for tensor in found.tensors)
    assert diff(folders[0], folders[0]).same


def test_modules_belong_to_the_parts_of_a_union():
    with pytest.raises(ConfigError, match="has no modules of its own"):
        AutoDeltaModel.from_config({"delta_type": "union", "parts": [LORA], "modified_modules": ["attn.q"]}, bert())
