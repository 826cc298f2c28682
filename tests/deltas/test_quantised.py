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


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_adapter_that_peft_trained_on_a_quantised_backbone_gives_the_outputs_of_peft(kind, use_dora, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = backbone(kind)
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = kind == "int8", kind == "nf4"  # as transformers notes it
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], use_dora=use_dora)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.eval()
    expected = logits_of(adapted)
    adapted.save_pretrained(tmp_path)
    loaded = backbone(kind)
    plain = logits_of(loaded)
    AutoDeltaModel.from_finetuned(tmp_path, loaded, check_hash=False)
    assert torch.allclose(logits_of(loaded), expected, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-2)
