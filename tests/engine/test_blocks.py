import pytest
import torch
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, LoraModel, PrefixModel, SoftPromptModel, UnionModel
from deltahub.engine.structure.blocks import block_of
from deltahub.errors import ConfigError, NoMatchError
from tests.backbones import bert, gpt2, llama, logits_of, stir, t5, untouched

LINEAR = {"bert": (bert, 13), "gpt2": (gpt2, 8), "t5": (t5, 32), "llama": (llama, 14)}


@pytest.mark.parametrize("name", LINEAR)
def test_all_linear_means_every_linear_layer_but_the_head(name):
    make, count = LINEAR[name]
    delta = LoraModel(make(), lora_r=2, modified_modules="all-linear", exclude_modules=[])

    assert len(delta.insertions) == count
    assert not {address.rpartition(".")[2] for address in delta.insertions} & {"lm_head", "classifier", "wte", "shared"}
    assert delta.config.modified_modules == ("all-linear",)


def test_all_linear_leaves_out_what_is_excluded_and_joins_other_addresses():
    delta = LoraModel(llama(), lora_r=2, modified_modules=["embed_tokens", "all-linear"], exclude_modules=["mlp"])

    assert "model.embed_tokens" in delta.insertions
    assert len(delta.insertions) == 9


def test_all_linear_counts_quantised_layers_and_not_those_inside_attention_of_torch():
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features, self.out_features = 4, 4
            self.register_buffer("codes", torch.zeros(4, 4, dtype=torch.uint8))

        def forward(self, x):
            return x

    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 1), "codes": Codes(), "linear": nn.Linear(4, 4)})
    delta = LoraModel(model, lora_r=2, modified_modules="all-linear")

    assert list(delta.insertions) == ["codes", "linear"]


def test_all_linear_without_a_linear_layer_is_refused():
    with pytest.raises(NoMatchError, match="no linear layer beside its head"):
        LoraModel(nn.ModuleDict({"rows": nn.Embedding(3, 2)}), modified_modules="all-linear")


@pytest.mark.parametrize("make", [bert, gpt2, t5, llama])
@pytest.mark.parametrize("kind", [LoraModel, AdapterModel, PrefixModel])
def test_only_the_chosen_blocks_get_the_delta(make, kind):
    delta = kind(make(), layers_to_transform=[1])

    assert delta.insertions
    assert {block_of(address)[1] for address in delta.insertions} == {1}


def test_parts_of_fused_layers_follow_the_choice_of_blocks_and_an_address_outside_of_them_is_refused():
    with pytest.raises(NoMatchError, match="wte"):
        LoraModel(gpt2(), modified_modules=["attn.q", "wte"], layers_to_transform=[0])
    delta = LoraModel(gpt2(), lora_r=2, modified_modules=["attn.q"], layers_to_transform=[0])

    assert list(dict(delta.named_parameters())) == [f"transformer.h.0.attn.c_attn.deltas.q.lora_{x}" for x in "AB"]


def test_a_delta_of_chosen_blocks_is_saved_and_loaded(tmp_path):
    backbone = llama()
    delta = LoraModel(backbone, lora_r=2, modified_modules="all-linear", layers_to_transform=0)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path)
    fresh = llama()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, fresh)

    assert list(loaded.insertions) == list(delta.insertions)
    assert torch.equal(logits_of(fresh), logits_of(backbone))


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ([-1], "must be at least 0"),
        ([2], "numbered from 0 to 1"),
        ([], "is empty"),
        (["0"], "must be of type integer"),
        ([True], "must be of type integer"),
    ],
)
def test_blocks_that_do_not_exist_are_refused(numbers, why):
    backbone = bert()

    with untouched(backbone), pytest.raises(ConfigError, match=why):
        LoraModel(backbone, layers_to_transform=numbers)


def test_a_chosen_block_without_a_target_is_refused():
    with pytest.raises(ConfigError, match="means no module in block 1"):
        LoraModel(bert(), modified_modules=["layer.0.attention.self.query"], layers_to_transform=[0, 1])


def test_a_backbone_without_numbered_blocks_is_refused():
    with pytest.raises(ConfigError, match="has none"):
        LoraModel(nn.Sequential(nn.Linear(2, 2)), modified_modules=["0"], layers_to_transform=[0])


def test_deltas_without_modules_of_their_own_refuse_a_choice_of_blocks():
    with pytest.raises(ConfigError, match="would do nothing"):
        SoftPromptModel.from_config({"delta_type": "soft_prompt", "layers_to_transform": [0]}, bert())
    with pytest.raises(ConfigError, match="no modules of its own"):
        UnionModel.from_config(
            {"delta_type": "union", "parts": [{"delta_type": "lora"}], "layers_to_transform": [0]}, bert()
        )
