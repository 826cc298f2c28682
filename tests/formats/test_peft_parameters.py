"""PEFT's `target_parameters`: LoRA on experts and routers, read and written with the outputs of PEFT."""

import json
import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltahub import AutoDeltaModel, LoraModel
from deltahub.errors import ConfigError
from tests.backbones import stir
from tests.deltas.test_lora_parameters import mixture, out

PLACES = {
    "Mixtral": ("mlp.experts", "mlp.gate.weight"),
    "GptOss": ("mlp.experts", "mlp.router.weight"),
    "Llama4Text": ("feed_forward.experts", "feed_forward.router.weight"),
}


def adapter_in(folder, family, **options):
    """Save an adapter of PEFT with values of its own, and return the outputs with it."""
    draw = torch.Generator().manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of names that transformers is about to drop, and of the config of the backbone on the Hub
        model = peft.get_peft_model(mixture(family), peft.LoraConfig(r=2, lora_alpha=6, **options)).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3, generator=draw)
        model.save_pretrained(folder)
        return out(model)


def through_peft(folder, family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return out(peft.PeftModel.from_pretrained(mixture(family), folder))


@pytest.mark.parametrize("family", PLACES)
@pytest.mark.parametrize("alone", [True, False])
def test_target_parameters_become_a_lora_and_are_written_again(tmp_path, family, alone):
    experts, router = PLACES[family]
    targets = [f"{experts}.gate_up_proj", f"{experts}.down_proj", router]
    patterns = {"rank_pattern": {router: 3}, "alpha_pattern": {f"{experts}.down_proj": 5}, "use_rslora": True}
    options = {"target_modules": [], **patterns} if alone else {"target_modules": ["q_proj"]}
    if not alone:
        options["modules_to_save"] = ["lm_head"]
    expected = adapter_in(tmp_path / "adapter", family, target_parameters=targets, **options)
    backbone = mixture(family)
    delta = AutoDeltaModel.from_finetuned(tmp_path / "adapter", backbone_model=backbone)
    delta.export(tmp_path / "again", "peft")

    torch.testing.assert_close(out(backbone), expected, atol=1e-5, rtol=1e-4)
    assert not any(".experts." in name and ".deltas." not in name for name in delta.state_dict())
    torch.testing.assert_close(through_peft(tmp_path / "again", family), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"modified_modules": ["experts.w1", "experts.w2", "router"]},
        {"modified_modules": ["experts"], "share_experts": True},
        {"modified_modules": ["experts.gate", "q_proj"], "rank_pattern": {"0.mlp.experts.gate_up_proj": 3}},
    ],
    ids=str,
)
def test_a_lora_on_parts_or_shared_by_experts_is_written_for_peft(tmp_path, options):
    backbone = mixture("GptOss")
    delta = LoraModel(backbone, lora_r=2, **options)
    stir(delta)
    delta.freeze_module(exclude=["deltas"])
    delta.export(tmp_path / "adapter", "peft")

    torch.testing.assert_close(through_peft(tmp_path / "adapter", "GptOss"), out(backbone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("missing", [(), (1,)], ids=["every expert", "some experts"])
def test_layers_of_single_experts_are_joined_into_a_lora_on_the_stack(tmp_path, missing):
    backbone, draw = mixture("Qwen3Moe"), torch.Generator().manual_seed(2)
    tensors, changes = {}, {}
    for name, n_in, n_out in (("gate_proj", 16, 8), ("up_proj", 16, 8), ("down_proj", 8, 16)):
        for expert in {*range(4)} - {*missing}:
            a, b = torch.randn(2, n_in, generator=draw), torch.randn(n_out, 2, generator=draw)
            changes[name, expert] = 3 * b @ a
            layer = f"base_model.model.model.layers.1.mlp.experts.{expert}.{name}"
            tensors |= {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    router = "base_model.model.model.layers.1.mlp.gate"  # a linear layer in transformers 4
    a, b = torch.randn(2, 16, generator=draw), torch.randn(4, 2, generator=draw)
    tensors |= {f"{router}.lora_A.weight": a, f"{router}.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    delta = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=backbone)
    names = {*delta.state_dict()}
    block = mixture("Qwen3Moe").model.layers[1].mlp
    plain = block.experts
    delta.merge()
    experts = backbone.model.layers[1].mlp.experts

    torch.testing.assert_close(backbone.model.layers[1].mlp.gate.weight, block.gate.weight + 3 * b @ a)
    assert names - {f"model.layers.1.mlp.gate.deltas.weight.lora_{side}" for side in "AB"} == {
        f"model.layers.1.mlp.experts.deltas.{key}.lora_{side}" for key in ("gate_up_proj", "down_proj") for side in "AB"
    }
    for (name, expert), change in changes.items():
        rows = {"gate_proj": slice(0, 8), "up_proj": slice(8, 16), "down_proj": slice(None)}[name]
        key = "down_proj" if name == "down_proj" else "gate_up_proj"
        old, new = (getattr(module, key)[expert][rows] for module in (plain, experts))
        torch.testing.assert_close(new, old + change, atol=1e-4, rtol=1e-4)
    for expert in missing:
        assert torch.equal(experts.down_proj[expert], plain.down_proj[expert])


def test_other_formats_refuse_a_lora_on_parameters(tmp_path):
    backbone = mixture("Mixtral")
    delta = LoraModel(backbone, lora_r=2, modified_modules=["experts.w2", "router"])
    stir(delta)
    delta.freeze_module(exclude=["deltas"])
    delta.save_finetuned(tmp_path / "delta")

    for form in ("opendelta", "adapters", "gguf"):
        with pytest.raises(ConfigError, match="parameter"):
            delta.export(tmp_path / "there", form)
    assert {path.name for path in tmp_path.iterdir()} == {"delta"}
    assert "model.layers.0.mlp.gate.deltas.weight.lora_A" in load_file(tmp_path / "delta" / "delta.safetensors")
