import torch

from deltahub import LoraModel
from tests.backbones import bert, original, t5


def test_statistics_count_every_tensor_once():
    backbone = original("bert")
    delta = LoraModel(backbone)
    delta.freeze_module()
    count = sum(parameter.numel() for parameter in backbone.parameters())

    found = delta.get_statistics()
    assert {key: found[key] for key in ("total_parameters", "trainable_parameters", "delta_parameters")} == {
        "total_parameters": count,
        "trainable_parameters": 2048,
        "delta_parameters": 2048,
    }
    assert found["delta_ratio"] == 2048 / count
    assert delta.get_statistics(backbone.classifier)["total_parameters"] == 3 * 32 + 3


def test_the_log_shows_the_tree_and_the_shares(capsys):
    delta = LoraModel(original("bert"))
    delta.freeze_module()
    delta.log()
    shown = capsys.readouterr().out

    assert "lora (LowRankUpdate)" in shown
    assert "Trainable Ratio: 2048/23459=8.730125%" in shown  # the numbers of the original
    assert "Delta Parameter Ratio: 2048/23459=8.730125%" in shown
    assert "Static Memory 0.00 GB" in shown


def test_a_probe_names_the_modules_that_a_call_does_not_reach():
    backbone = t5()
    delta = LoraModel(backbone, modified_modules=["shared", "SelfAttention.q"])
    hooks = {name: len(module._forward_pre_hooks) for name, module in backbone.named_modules()}
    ids = torch.tensor([[1, 2, 3]])

    assert delta.probe(input_ids=ids, decoder_input_ids=ids) == ["shared"]  # T5's stacks read its weight themselves
    assert {name: len(module._forward_pre_hooks) for name, module in backbone.named_modules()} == hooks


def test_a_delta_that_acts_everywhere_has_nothing_to_name():
    backbone = bert()
    assert LoraModel(backbone).probe(torch.tensor([[1, 2, 3]])) == []
