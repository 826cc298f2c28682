"""An adapter that PEFT saved gives here the outputs that it gives in PEFT."""

from __future__ import annotations

import copy
import hashlib
import json
import logging

import peft
import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PromptTuningConfig
from safetensors.torch import load_file
from torch import nn

from deltahub import AutoDeltaModel, export_peft
from deltahub.checkpoint.checkpoint import describe
from tests.backbones import bert, bert_mlm, equal, gpt2, llama, logits_of, t5, tensors_of

# PEFT asks transformers for what it renames.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]
TOLERANCE = 1e-5  # relative to the largest logit


def far(expected, actual):
    return ((expected - actual).abs().max() / expected.abs().max()).item()


@pytest.fixture
def saved(tmp_path):
    """Makes an adapter in PEFT, saves it, and gives its logits there and its folder."""

    def save(make, config):
        draw = torch.Generator().manual_seed(3)
        model = peft.get_peft_model(make(), config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "original_module" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        model.save_pretrained(tmp_path / "adapter")
        return logits_of(model), tmp_path / "adapter"

    return save


def load(make, folder, **options):
    backbone = make()
    return AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **options), backbone


LORAS = {
    "plain": (llama, {"target_modules": ["q_proj", "v_proj"], "r": 4}),
    "rslora": (llama, {"target_modules": ["q_proj"], "r": 4, "use_rslora": True, "lora_alpha": 3}),
    "dora": (llama, {"target_modules": ["q_proj", "down_proj"], "r": 4, "use_dora": True}),
    "patterns": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj"],
            "r": 4,
            "rank_pattern": {"layers.0.self_attn.q_proj": 2},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    "dora_patterns": (
        llama,
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "use_dora": True, "rank_pattern": {"q_proj": 2}},
    ),
    "all_linear": (llama, {"target_modules": "all-linear", "r": 2}),
    "regex": (bert, {"target_modules": r".*layer\.1\..*(query|dense)", "r": 2}),
    "head": (bert, {"target_modules": ["query"], "task_type": "SEQ_CLS", "r": 2}),
    "modules_to_save": (bert, {"target_modules": ["query"], "modules_to_save": ["pooler", "classifier"], "r": 2}),
    "bias_all": (bert, {"target_modules": ["query"], "bias": "all", "r": 2}),
    "bias_lora_only": (bert, {"target_modules": ["query", "value"], "bias": "lora_only", "r": 2}),
    "embedding": (bert, {"target_modules": ["word_embeddings", "query"], "r": 2}),
    "conv1d": (gpt2, {"target_modules": ["c_attn", "c_proj"], "r": 2, "fan_in_fan_out": True}),
    "t5": (t5, {"target_modules": ["q", "wo"], "r": 2, "task_type": "SEQ_2_SEQ_LM"}),
    "some_layers": (llama, {"target_modules": ["q_proj"], "r": 2, "layers_to_transform": [1]}),
    "excluded": (bert, {"target_modules": ["dense"], "r": 2, "exclude_modules": ["pooler.dense"]}),
    "wider_than_the_layer": (llama, {"target_modules": ["k_proj"], "r": 40}),
}
# Initialisations that change the backbone's weights, and those that do not.
STARTS = {
    "gaussian": (llama, {"target_modules": ["q_proj"], "r": 2, "init_lora_weights": "gaussian"}),
    "orthogonal": (llama, {"target_modules": ["q_proj"], "r": 2, "init_lora_weights": "orthogonal"}),
    "pissa": (llama, {"target_modules": ["q_proj", "down_proj"], "r": 3, "init_lora_weights": "pissa"}),
    "pissa_conv1d": (
        gpt2,
        {"target_modules": ["c_attn"], "r": 3, "init_lora_weights": "pissa", "fan_in_fan_out": True},
    ),
    "pissa_dora": (llama, {"target_modules": ["v_proj"], "r": 3, "init_lora_weights": "pissa", "use_dora": True}),
    "pissa_patterns": (
        llama,
        {
            "target_modules": ["q_proj", "v_proj"],
            "r": 3,
            "init_lora_weights": "pissa",
            "rank_pattern": {"v_proj": 2},
            "alpha_pattern": {"q_proj": 1},
        },
    ),
    "pissa_rslora": (llama, {"target_modules": ["q_proj"], "r": 3, "init_lora_weights": "pissa", "use_rslora": True}),
    "olora": (llama, {"target_modules": ["q_proj", "up_proj", "down_proj"], "r": 3, "init_lora_weights": "olora"}),
    "olora_wider": (llama, {"target_modules": ["q_proj"], "r": 40, "init_lora_weights": "olora"}),
}


@pytest.mark.parametrize("case", LORAS)
def test_a_lora_of_peft_gives_the_same_outputs_here(saved, case):
    make, options = LORAS[case]
    expected, folder = saved(make, LoraConfig(**{"init_lora_weights": False, "lora_dropout": 0.1, **options}))
    delta, backbone = load(make, folder)

    assert far(expected, logits_of(backbone)) < TOLERANCE
    assert far(expected, logits_of(make())) > 100 * TOLERANCE
    assert (delta.config.delta_type, delta.config.lora_dropout) == ("lora", 0.1)


@pytest.mark.parametrize("case", STARTS)
def test_the_initialisations_change_of_the_backbone_is_repeated(saved, case):
    make, options = STARTS[case]
    expected, folder = saved(make, LoraConfig(**options))
    _, backbone = load(make, folder)

    assert far(expected, logits_of(backbone)) < TOLERANCE
    assert far(expected, logits_of(make())) > 100 * TOLERANCE


def tied(seed=0):
    return llama(seed, tie_word_embeddings=True)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tied, {"modules_to_save": ["embed_tokens"]}),
        (tied, {"modules_to_save": ["lm_head"]}),
        (tied, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (tied, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        (tied, {"target_modules": ["lm_head", "q_proj"]}),
        (tied, {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
        (tied, {"modules_to_save": ["norm"], "r": 2}),
        (llama, {"modules_to_save": ["embed_tokens"]}),
        (gpt2, {"target_modules": ["c_attn"], "modules_to_save": ["wte"], "fan_in_fan_out": True}),
        (t5, {"target_modules": ["q"], "modules_to_save": ["shared"]}),
        (t5, {"target_modules": ["q"], "modules_to_save": ["embed_tokens"]}),
        (bert_mlm, {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]}),
    ],
    ids=lambda it: it.__name__ if callable(it) else "-".join(f"{key}={value}" for key, value in it.items()),
)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")
@pytest.mark.filterwarnings("ignore:Model with .tie_word_embeddings=True.:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
def test_a_weight_that_layers_share_is_replaced_where_peft_replaces_it(saved, make, options):
    expected, folder = saved(make, LoraConfig(**{"target_modules": ["q_proj"], "r": 2, **options}))
    delta, backbone = load(make, folder)
    before, bare = tensors_of(make()), logits_of(make())

    assert far(expected, logits_of(backbone)) < TOLERANCE
    assert far(expected, bare) > 100 * TOLERANCE
    delta.detach()
    assert torch.equal(bare, logits_of(backbone))
    assert equal(before, tensors_of(backbone))


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (llama, IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])),
        (bert, IA3Config(target_modules=["key", "value"], feedforward_modules=["value"])),
        (t5, IA3Config(task_type="SEQ_2_SEQ_LM")),
        (gpt2, IA3Config(task_type="CAUSAL_LM", fan_in_fan_out=True)),
        (bert, LNTuningConfig(target_modules=["LayerNorm"])),
        (llama, LNTuningConfig(target_modules=["input_layernorm", "norm"])),
        (llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        (t5, PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)),
        (bert, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)),
        (llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, modules_to_save=["norm"])),
    ],
    ids=lambda it: it.__name__ if callable(it) else it.peft_type.value.lower(),
)
def test_other_methods_of_peft_give_the_same_outputs_here(saved, make, config):
    expected, folder = saved(make, config)
    _, backbone = load(make, folder)

    assert far(expected, logits_of(backbone)) < TOLERANCE
    if expected.shape == logits_of(make()).shape:
        assert far(expected, logits_of(make())) > 100 * TOLERANCE


class Narrow(nn.Module):
    """Two layers of one unit, where a vector's shape does not tell whether it is for the input or the output."""

    def __init__(self):
        super().__init__()
        self.my_fc, self.fc = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x):
        return self.fc(self.my_fc(x))


def test_feedforward_modules_are_any_ends_of_names(tmp_path):
    made, x = Narrow(), torch.tensor([[1.0], [-2.0]])
    backbone = copy.deepcopy(made)
    model = peft.get_peft_model(made, IA3Config(target_modules=["my_fc", "fc"], feedforward_modules=["fc"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ia3_l" in name:
                parameter.fill_(1.7)
    model.save_pretrained(tmp_path)
    AutoDeltaModel.from_finetuned(tmp_path, backbone)
    assert torch.allclose(backbone(x), model(x))


def test_an_adapter_comes_off_and_leaves_the_backbone_as_it_was(saved):
    _, folder = saved(bert, LoraConfig(target_modules=["query"], bias="all", modules_to_save=["classifier"], r=2))
    backbone = bert()
    before, logits = tensors_of(backbone), logits_of(backbone)
    delta = AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)
    assert not torch.equal(logits, logits_of(backbone))
    delta.detach()

    assert equal(before, tensors_of(backbone))
    assert torch.equal(logits, logits_of(backbone))


def test_an_adapter_becomes_a_delta_that_names_it_and_goes_back_the_same(saved, tmp_path):
    expected, folder = saved(llama, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=4))
    delta, _ = load(llama, folder)
    delta.save_finetuned(tmp_path / "delta")
    back = export_peft(tmp_path / "delta", tmp_path / "back")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    ours, theirs = load_file(back / "adapter_model.safetensors"), load_file(folder / "adapter_model.safetensors")

    assert describe(tmp_path / "delta").config["parents"] == [
        {"relation": "converted", "digest": f"sha256:{hashlib.sha256(weights).hexdigest()}", "format": "peft"}
    ]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert far(expected, logits_of(peft.PeftModel.from_pretrained(llama(), back).eval())) < TOLERANCE


def test_training_goes_on_from_an_adapter(saved):
    _, folder = saved(bert, LoraConfig(target_modules=["query"], modules_to_save=["classifier"], r=2))
    delta, backbone = load(bert, folder)
    delta.freeze_module()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}

    assert {name.rpartition(".")[0] for name in trained if "deltas" not in name} == {"classifier"}
    assert any("deltas" in name for name in trained)


def test_another_name_of_the_backbone_is_reported(saved, caplog):
    _, folder = saved(llama, LoraConfig(target_modules=["q_proj"], r=2))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "acme/first"}))
    backbone = llama()
    backbone.config._name_or_path = "acme/second"
    with caplog.at_level(logging.WARNING, "deltahub"):
        AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)

    assert "trained on first, and this backbone is called second" in caplog.text


def body(make):
    """The model inside a model with a head."""
    return lambda: make().base_model


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers. to .True.:UserWarning")
@pytest.mark.parametrize(
    ("make", "options", "left"),
    [
        (bert, {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}, "classifier.bias, classifier.weight"),
        (bert, {"target_modules": r"bert\.encoder.*query", "rank_pattern": {"^bert.encoder.layer.0.*": 3}}, None),
        (
            llama,
            {"target_modules": ["q_proj", "lm_head"]},
            "lm_head.base_layer.weight, lm_head.lora_A.weight, lm_head.lora_B.weight",
        ),
    ],
)
def test_an_adapter_of_a_model_with_a_head_acts_on_the_model_inside(tmp_path, caplog, make, options, left):
    model = peft.get_peft_model(make(), LoraConfig(r=2, init_lora_weights=False, **options)).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(1, 7)[None]
    backbone = body(make)()
    AutoDeltaModel.from_finetuned(tmp_path / "adapter", backbone_model=backbone)
    with torch.no_grad():
        expected = model.base_model.model.base_model(tokens).last_hidden_state
        actual = backbone(tokens).last_hidden_state

    assert far(expected, actual) < TOLERANCE
    assert [r.message for r in caplog.records if "Left out" in r.message] == (
        [f"The adapter is of a model with a head that this {type(backbone).__name__} has not. Left out: {left}"]
        if left
        else []
    )


@pytest.mark.parametrize("make", [bert, llama])
def test_an_adapter_of_the_model_inside_acts_in_a_model_with_a_head(tmp_path, make):
    targets = {"target_modules": ["query", "q_proj"], "rank_pattern": {"^(encoder.layer|layers).0.*": 3}}
    model = peft.get_peft_model(body(make)(), LoraConfig(r=2, init_lora_weights=False, **targets)).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokens = torch.arange(1, 7)[None]
    backbone = make()
    AutoDeltaModel.from_finetuned(tmp_path / "adapter", backbone_model=backbone)
    with torch.no_grad():
        expected = model(tokens).last_hidden_state
        actual = backbone.base_model(tokens).last_hidden_state

    assert far(expected, actual) < TOLERANCE
