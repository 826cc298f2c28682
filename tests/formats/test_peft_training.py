"""What was loaded from PEFT trains on as it does in PEFT: the losses of thirty steps are the same."""

from __future__ import annotations

import peft
import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PromptTuningConfig

from deltahub import AutoDeltaModel, export_peft
from tests.backbones import bert, equal, forward, gpt2, llama

pytestmark = [
    pytest.mark.slow,  # thirty steps of training, here and in PEFT
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),
]
QV = {"target_modules": ["q_proj", "v_proj"], "r": 4}
PATTERNS = {"rank_pattern": {"q_proj": 2, "1.self_attn.v_proj": 3}, "alpha_pattern": {"q_proj": 32}}
CASES = {
    "plain": (llama, LoraConfig(**QV)),
    "dropout": (llama, LoraConfig(**QV, lora_dropout=0.3)),
    "patterns": (llama, LoraConfig(**QV, **PATTERNS)),
    "rslora_patterns": (llama, LoraConfig(**QV, **PATTERNS, use_rslora=True)),
    "dora": (llama, LoraConfig(**QV, use_dora=True)),
    "dora_dropout": (bert, LoraConfig(target_modules=["query", "dense"], r=4, use_dora=True, lora_dropout=0.3)),
    "dora_dropout_conv1d": (
        gpt2,
        LoraConfig(target_modules=["c_attn"], r=4, use_dora=True, lora_dropout=0.3, fan_in_fan_out=True),
    ),
    "biases_and_head": (
        bert,
        LoraConfig(target_modules=["query"], r=2, bias="lora_only", modules_to_save=["classifier"]),
    ),
    "embedding": (llama, LoraConfig(target_modules=["embed_tokens", "q_proj"], r=2, alpha_pattern={"q_proj": 5})),
    "ia3": (llama, IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
    "layer_norm": (bert, LNTuningConfig(target_modules=["LayerNorm"])),
    "prompt": (llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
}


def losses(model):
    """The losses of thirty steps of AdamW, with the same draws of dropout; the backbone's own dropout is off."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, found = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(30):
            loss = forward(model).float().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return torch.tensor(found)


def quiet(model):
    """Turn the backbone's own dropout off, which the two libraries would draw in another order."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_thirty_steps_give_the_losses_of_peft(tmp_path, case):
    make, config = CASES[case]
    draw, first = torch.Generator().manual_seed(3), peft.get_peft_model(make(), config)
    with torch.no_grad():
        for name, parameter in first.named_parameters():
            if parameter.requires_grad and "original_module" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.05)
    first.save_pretrained(tmp_path)
    again = not config.is_prompt_learning  # which PEFT does not train on from a file
    theirs = peft.PeftModel.from_pretrained(quiet(make()), tmp_path, is_trainable=True) if again else quiet(first)
    theirs.train()
    backbone = quiet(make())
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=backbone).freeze_module()
    expected, found = losses(theirs), losses(backbone.train())

    assert expected[0] != expected[-1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_patterns_go_back_to_peft_the_same(tmp_path):
    make, config = CASES["rslora_patterns"]
    peft.get_peft_model(make(), config).save_pretrained(tmp_path / "first")
    delta = AutoDeltaModel.from_finetuned(tmp_path / "first", backbone_model=make())
    delta.save_finetuned(tmp_path / "delta")
    backbone = make()
    export_peft(tmp_path / "delta", tmp_path / "back")
    there = peft.PeftModel.from_pretrained(make(), tmp_path / "back").eval()
    here = peft.PeftModel.from_pretrained(make(), tmp_path / "first").eval()
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=backbone)

    assert equal(dict(there.named_parameters()), dict(here.named_parameters()))
    torch.testing.assert_close(forward(there), forward(here))
    torch.testing.assert_close(forward(backbone), forward(here))
