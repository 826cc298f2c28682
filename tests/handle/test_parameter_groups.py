import pytest
import torch

from deltahub import AdapterModel, LoraModel
from deltahub.errors import ConfigError
from tests.backbones import bert, gpt2


def rates_of(delta, **options):
    """The learning rate and the weight decay of each parameter, by its last name."""
    names = {id(p): name for name, p in delta.backbone_model.named_parameters()}
    return {
        names[id(parameter)].partition("deltas.")[2].partition(".")[2] or names[id(parameter)]: (
            group["lr"],
            group["weight_decay"],
        )
        for group in delta.parameter_groups(1.0, **options)
        for parameter in group["params"]
    }


def test_b_trains_faster_than_a_and_all_else_as_a():
    delta = LoraModel(bert(), use_dora=True, modified_modules=["query"])
    delta.freeze_module(exclude=["deltas", "classifier"])

    assert rates_of(delta, ratio=8, weight_decay=0.1) == {
        "lora_A": (1.0, 0.1),
        "lora_B": (8.0, 0.1),
        "lora_magnitude_vector": (1.0, 0.0),
        "classifier.weight": (1.0, 0.1),
        "classifier.bias": (1.0, 0.0),
    }


def test_the_bias_of_b_goes_with_b_and_embeddings_train_at_one_rate():
    biased = LoraModel(bert(), use_bias=True, modified_modules=["query"])
    rows = LoraModel(gpt2(), modified_modules=["wte"])
    biased.freeze_module()
    rows.freeze_module()

    assert rates_of(biased)["lora_bias"] == (16.0, 0.0)
    assert rates_of(rows) == {"lora_A": (1.0, 0.0), "lora_B": (1.0, 0.0)}


def test_parts_of_fused_layers_are_treated_as_layers():
    delta = LoraModel(gpt2(), modified_modules=["attn.q"])
    delta.freeze_module()

    assert rates_of(delta) == {"q.lora_A": (1.0, 0.0), "q.lora_B": (16.0, 0.0)}


def test_each_parameter_is_in_one_group_and_an_optimiser_takes_them():
    delta = LoraModel(gpt2(), modified_modules="all-linear")
    delta.freeze_module()
    groups = delta.parameter_groups(1e-3)
    optimizer = torch.optim.AdamW(groups)

    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in delta.parameters())
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3, 1.6e-2}


def test_a_method_without_a_b_has_one_group():
    delta = AdapterModel(gpt2())
    delta.freeze_module()

    assert len(delta.parameter_groups(1e-3)) == 1


def test_other_deltas_are_left_out():
    backbone = gpt2()
    first, second = LoraModel(backbone, name="first"), LoraModel(backbone, name="second")
    second.freeze_module(exclude=["deltas", "deltas.first"])

    assert sum(len(group["params"]) for group in first.parameter_groups(1.0)) == len(list(first.parameters()))


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0},
        {"lr": -1.0},
        {"lr": 1.0, "ratio": 0},
        {"lr": 1.0, "weight_decay": -1},
        {"lr": "1"},
        {"lr": float("nan")},
    ],
)
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match="must be a number of"):
        LoraModel(gpt2()).parameter_groups(**options)


def test_a_delta_that_does_not_train_has_no_groups():
    backbone = gpt2()
    first = LoraModel(backbone, name="first")
    LoraModel(backbone, name="second").freeze_module()

    with pytest.raises(ConfigError, match="Call freeze_module"):
        first.parameter_groups(1e-3)
