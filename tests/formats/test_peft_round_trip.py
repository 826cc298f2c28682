"""Every method and option on many architectures, from DeltaHub to PEFT and back: the same outputs, and every tensor used."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

from deltahub import AutoDeltaModel, IA3Model, LayerNormModel, LoraModel, SoftPromptModel, export_peft
from deltahub.errors import ConfigError
from tests import backbones
from tests.backbones import built_once
from tests.formats import architectures
from tests.formats.architectures import logits_of
from tests.grids import in_turn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
# Of each architecture: layers for LoRA and DoRA where these are not the defaults, and a trained module.
ARCHITECTURES = {
    "bert": ({}, "classifier"),
    "roberta": ({}, "classifier"),
    "distilbert": ({}, "[r]classifier"),
    "gpt2": ({"dora": ["c_attn", "mlp.c_proj"]}, "ln_f"),
    "llama": ({}, "lm_head"),
    "t5": ({"lora": ["q", "v", "wi"]}, "final_layer_norm"),
    "bart": ({"lora": ["q_proj", "fc1"]}, "layernorm_embedding"),
    "gemma": ({"lora": ["embed_tokens", "q_proj"]}, "norm"),
    "opt": ({}, "embed_positions"),
    "whisper": ({}, "conv1"),
    "vit": ({}, "classifier"),
    "neox": ({"dora": ["query_key_value", "dense"]}, "final_layer_norm"),
    "mamba": ({"lora": ["in_proj", "x_proj"]}, "norm_f"),
    "numbered": ({"lora": ["0"]}, "tail.2"),
}
METHODS = {
    "lora": (LoraModel, {}),
    "rank": (LoraModel, {"lora_r": 3, "lora_alpha": 5, "lora_dropout": 0.1}),
    "rslora": (LoraModel, {"use_rslora": True}),
    "dora": (LoraModel, {"use_dora": True}),
    "head": (LoraModel, {}),
    "ia3": (IA3Model, {}),
    "layer_norm": (LayerNormModel, {}),
    "soft_prompt": (SoftPromptModel, {"soft_token_num": 3, "token_init": False}),
}
ANYWHERE = ("rank", "rslora", "head")
LEFT_OUT = {
    *((kind, "soft_prompt") for kind in ("vit", "whisper", "numbered")),
    ("numbered", "layer_norm"),
    *(("gemma", method) for method in METHODS if method != "rslora"),  # what is its own is the LoRA on its embedding
}
# Options that mean the same on every architecture: each has one of them in turn.
for number, kind in enumerate(ARCHITECTURES):
    LEFT_OUT |= {(kind, method) for method in ANYWHERE if method not in in_turn(ANYWHERE, number)}
CASES = [(kind, method) for kind in ARCHITECTURES for method in METHODS if (kind, method) not in LEFT_OUT]


@pytest.fixture(scope="module")
def made():
    return built_once(lambda kind: (getattr(architectures, kind, None) or getattr(backbones, kind))())


def options_for(kind, method):
    options = dict(METHODS[method][1])
    layers = ARCHITECTURES[kind][0]
    if METHODS[method][0] is LoraModel and (names := layers.get(method, layers.get("lora"))):
        options["modified_modules"] = names
    if method == "ia3" and kind in ("mamba", "numbered"):
        inner = {"mamba": "in_proj", "numbered": "tail.0"}[kind]
        options |= {"modified_modules": [*layers["lora"][1:], inner], "feedforward_modules": [inner]}
    if method == "layer_norm" and kind == "mamba":
        options["modified_modules"] = ["norm"]
    return options


def trained(model, kind, method):
    """Put a delta on a model and move all that it trains."""
    delta = METHODS[method][0](model, **options_for(kind, method))
    delta.freeze_module(exclude=["deltas", *([ARCHITECTURES[kind][1]] if method == "head" else [])])
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return delta


def in_peft(model, folder, kind):
    """The outputs with an adapter as PEFT loads it, which must have taken each of its tensors."""
    loaded = peft.PeftModel.from_pretrained(model, folder).eval()
    file, taken = load_file(folder / "adapter_model.safetensors"), peft.get_peft_model_state_dict(loaded)
    assert file.keys() <= taken.keys()
    assert all(torch.equal(tensor, taken[name]) for name, tensor in file.items())
    return logits_of(loaded, kind)


def far(expected, actual):
    return ((expected - actual).abs().max() / expected.abs().max()).item()


def adapter(folder):
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_bytes())


def test_a_delta_from_before_embeddings_scaled_their_lora_is_refused(made, tmp_path):
    model = made("gemma")
    trained(model, "gemma", "rslora").save_finetuned(tmp_path / "delta")
    config = tmp_path / "delta" / "delta_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "deltahub_version": "0.1.0"}))
    with pytest.raises(ConfigError, match=r"did not multiply the LoRA on model\.embed_tokens by"):
        export_peft(tmp_path / "delta", tmp_path / "peft", backbone=model)


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_a_delta_goes_to_peft_and_back(made, tmp_path, kind, method):
    model = made(kind)
    before = logits_of(model, kind)
    delta = trained(model, kind, method)
    expected = logits_of(model, kind)
    delta.save_finetuned(tmp_path / "delta")
    folder = export_peft(tmp_path / "delta", tmp_path / "peft", backbone=model)

    assert expected.shape != before.shape or far(expected, before) > 1e-4
    assert far(expected, in_peft(made(kind), folder, kind)) < 1e-5

    again = made(kind)
    read = AutoDeltaModel.from_finetuned(folder, again)
    assert far(expected, logits_of(again, kind)) < 1e-5

    read.save_finetuned(tmp_path / "read")
    (tensors, config), (others, other) = (
        adapter(folder),
        adapter(export_peft(tmp_path / "read", tmp_path / "out", backbone=again)),
    )
    assert tensors.keys() == others.keys()
    assert all(torch.allclose(tensor, others[name], atol=1e-6) for name, tensor in tensors.items())
    assert (config["peft_type"], config["task_type"]) == (other["peft_type"], other["task_type"])
