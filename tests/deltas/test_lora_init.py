import json

import pytest
import torch
from torch import nn

from deltahub import AdapterConfig, AutoDeltaModel, LoraConfig, LoraModel, UnionModel
from deltahub.errors import ConfigError, TargetError
from tests.backbones import bert, gpt2, inputs_for, llama, logits_of, train

ANCHORED = ["pissa", "pissa_niter_4", "olora"]


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("name", ANCHORED)
def test_a_start_from_the_weight_changes_nothing_trains_and_is_saved_as_a_plain_lora(name, make, tmp_path):
    backbone = make()
    bare = logits_of(backbone)
    delta = LoraModel(backbone, lora_r=4, init_lora_weights=name)
    delta.freeze_module()
    assert torch.equal(logits_of(backbone), bare)
    assert all(parameter.any() for parameter in delta.parameters())

    train(backbone, 2)
    trained = logits_of(backbone)
    delta.save_finetuned(tmp_path)
    fresh = make()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, fresh)

    assert not torch.allclose(trained, bare, atol=1e-3)
    assert torch.allclose(logits_of(fresh), trained, atol=1e-5)
    assert (loaded.config.lora_r, loaded.config.init_lora_weights) == (8, "default")
    assert "init_lora_weights" not in json.loads((tmp_path / "delta_config.json").read_text())
    delta.merge()
    assert torch.allclose(logits_of(backbone), trained, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_training_from_a_start_in_the_weight_is_that_of_peft(name, rslora):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    ours, theirs = llama(), llama()
    delta = LoraModel(
        ours, lora_r=4, lora_alpha=2, use_rslora=rslora, init_lora_weights=name, modified_modules=["q_proj"]
    )
    delta.freeze_module()
    config = PeftConfig(r=4, lora_alpha=2, use_rslora=rslora, init_lora_weights=name, target_modules=["q_proj"])
    theirs = get_peft_model(theirs, config)
    for model in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(3):
            model(**inputs_for(ours)).logits.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    assert torch.allclose(logits_of(ours), theirs(**inputs_for(ours)).logits, atol=1e-4)


def test_patterns_double_with_the_rank_when_a_start_is_saved(tmp_path):
    backbone = llama()
    delta = LoraModel(
        backbone,
        lora_r=2,
        use_rslora=True,
        rank_pattern={"0.self_attn.q_proj": 3},
        alpha_pattern={"v_proj": 5},
        init_lora_weights="pissa",
    )
    delta.freeze_module()
    train(backbone, 2)
    delta.scale(0.5)
    delta.save_finetuned(tmp_path)
    fresh = llama()
    AutoDeltaModel.from_finetuned(tmp_path, fresh)
    delta.export(tmp_path / "peft", verify=True)

    assert torch.allclose(logits_of(fresh), logits_of(backbone), atol=1e-5)


def test_the_state_of_a_delta_with_a_start_is_restored():
    first, second = llama(), llama()
    delta, other = (LoraModel(backbone, lora_r=2, init_lora_weights="pissa_niter_2") for backbone in (first, second))
    delta.freeze_module()
    other.freeze_module()
    train(first, 2)
    other.load_state_dict(delta.state_dict())

    assert torch.equal(logits_of(first), logits_of(second))


def test_a_part_of_a_union_is_saved_as_a_plain_lora_too(tmp_path):
    backbone = llama()
    parts = [LoraConfig(lora_r=2, init_lora_weights="pissa"), AdapterConfig(modified_modules=["mlp"])]
    delta = UnionModel(backbone, parts)
    delta.freeze_module()
    train(backbone, 2)
    delta.save_finetuned(tmp_path)
    fresh = llama()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, fresh)

    assert torch.allclose(logits_of(fresh), logits_of(backbone), atol=1e-5)
    assert loaded.config.parts[0]["lora_r"] == 4
    assert not any("start" in name for name in loaded.state_dict())


def test_gaussian_and_orthogonal_starts_change_nothing():
    for name in ("gaussian", "orthogonal"):
        backbone = bert()
        bare = logits_of(backbone)
        delta = LoraModel(backbone, lora_r=4, init_lora_weights=name)
        b = [p for key, p in delta.named_parameters() if key.endswith("lora_B")]

        assert torch.allclose(logits_of(backbone), bare, atol=1e-6)
        assert all(p.any() for p in b) == (name == "orthogonal")


def test_true_is_the_default_as_in_peft():
    assert LoraConfig(init_lora_weights=True) == LoraConfig()
    assert "init_lora_weights" not in LoraConfig().to_dict()


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"init_lora_weights": "pisa"}, ConfigError, "is unknown; expected True, 'gaussian'"),
        ({"init_lora_weights": False}, ConfigError, "init_lora_weights must be"),
        ({"init_lora_weights": "eva"}, ConfigError, "initialize_eva"),
        ({"share_experts": True}, ConfigError, "share_experts is for stacks of experts"),
        ({"name": 3}, ConfigError, "3 cannot be the name of a delta"),
        ({"backbone_model": None}, ConfigError, "must be a torch.nn.Module, got None"),
        ({"init_lora_weights": "loftq"}, ConfigError, "needs the weights before they were quantised"),
        ({"init_lora_weights": "lora_ga"}, ConfigError, "needs the gradients"),
        ({"init_lora_weights": "pissa", "use_dora": True}, ConfigError, "A DoRA cannot start"),
        ({"init_lora_weights": "pissa", "lora_r": 99}, ConfigError, "a rank of at most 16"),
        ({"init_lora_weights": "orthogonal", "lora_r": 3}, ConfigError, "needs an even rank"),
        ({"init_lora_weights": "olora", "modified_modules": ["embed_tokens"]}, TargetError, "it is not a linear layer"),
    ],
)
def test_a_start_that_cannot_be_is_refused(options, error, why):
    with pytest.raises(error, match=why):
        LoraModel(**{"backbone_model": llama(), **options})


class Wide(nn.Module):
    """A layer whose inputs vary in two directions only."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x, attention_mask=None):
        return self.layer(x)


def test_eva_starts_in_the_directions_in_which_the_inputs_vary():
    model = Wide()
    delta = LoraModel(model, lora_r=2, modified_modules=["layer"])
    basis = torch.linalg.qr(torch.randn(6, 2))[0]
    x = torch.randn(3, 5, 2) * torch.tensor([9.0, 1.0]) @ basis.T + 50  # a mean is no variation
    padded = torch.cat([x, 1e3 * torch.randn(3, 1, 6)], dim=1)
    mask = torch.tensor([[1] * 5 + [0]] * 3)
    delta.initialize_eva([{"x": padded, "attention_mask": mask}, (x,), x])
    a = delta.insertions["layer"].lora_A

    assert torch.allclose(a @ a.T, torch.eye(2), atol=1e-5)
    assert torch.allclose(basis @ basis.T @ a.T, a.T, atol=1e-5)
    assert model.training
    assert not model.layer._forward_pre_hooks


def test_eva_needs_a_lora_that_is_not_trained_and_enough_inputs():
    model = Wide()
    delta = LoraModel(model, lora_r=4, modified_modules=["layer"])
    with pytest.raises(ConfigError, match="received 3 tokens"):
        delta.initialize_eva([torch.randn(3, 6)])
    with pytest.raises(ConfigError, match="received 0 tokens"):
        delta.initialize_eva([])
    with torch.no_grad():
        delta.insertions["layer"].lora_B.fill_(1)
    with pytest.raises(ConfigError, match="trained already"):
        delta.initialize_eva([torch.randn(9, 6)])


@pytest.mark.parametrize("width", [1, 3, 64, 100])
def test_the_default_start_draws_the_numbers_of_kaiming_uniform(width):
    backbone = nn.Sequential(nn.Linear(width, 5))
    torch.manual_seed(7)
    delta = LoraModel(backbone, lora_r=2, modified_modules=["0"])
    torch.manual_seed(7)
    expected = nn.init.kaiming_uniform_(torch.empty(2, width), a=5**0.5)
    assert torch.equal(next(delta.parameters()), expected)
