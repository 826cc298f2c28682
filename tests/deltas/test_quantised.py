"""Every delta type trains on quantised backbones, and is saved and loaded again bit for bit."""

import pytest
import torch

from deltahub import AutoDeltaModel
from tests.backbones import bert, logits_of, train
from tests.deltas.test_contract import OPTIONS
from tests.quantised import quantise

CASES = {
    **OPTIONS,
    "lora with dora": {"lora_r": 2, "use_dora": True},
    "weight_update with oft": {"method": "oft", "options": {"block_size": 8}},
    "weight_update with hira": {"method": "hira", "options": {"r": 2}},
}


def backbone(kind):
    return quantise(bert(hidden_size=64, intermediate_size=64), kind)


@pytest.mark.parametrize("kind", ["int8", "nf4", "torchao"])
@pytest.mark.parametrize("case", CASES)
def test_a_delta_trains_with_a_head_and_is_loaded_again_bit_for_bit(case, kind, tmp_path):
    model = backbone(kind)
    plain = logits_of(model)
    delta = AutoDeltaModel.from_config({"delta_type": case.split()[0], **CASES[case]}, model)
    delta.freeze_module(exclude=["deltas", "classifier"])
    before = {name: value.detach().clone() for name, value in delta.named_parameters()}
    model.train()
    train(model, steps=2)
    model.eval()
    assert all(p.dtype == torch.float32 for p in delta.parameters())
    assert any(not torch.equal(value, before[name]) for name, value in delta.named_parameters())
    trained = logits_of(model)
    assert not torch.equal(trained, plain)
    delta.save_finetuned(tmp_path)
    again = backbone(kind)
    AutoDeltaModel.from_finetuned(tmp_path, again)
    assert torch.equal(logits_of(again), trained)
    delta.detach()
    assert torch.equal(logits_of(model), plain)
