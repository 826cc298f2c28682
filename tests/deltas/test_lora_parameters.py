"""LoRA on parameters that a module reads itself: experts, routers and others."""

import copy
import pickle

import pytest
import torch
import transformers
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, LoraModel, deltas_of, route
from deltahub.engine.skeleton import common_names
from deltahub.errors import ConfigError, NoMatchError, RouteError, TargetError
from deltahub.picker.tree import tree_json
from tests.backbones import stir

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "qk_nope_head_dim": 4,
    "n_group": 2,
    "topk_group": 1,
}
FAMILIES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "head_dim": 8, "moe_intermediate_size": 8},
    "GptOss": {"num_local_experts": 4, "head_dim": 8},
    "DeepseekV3": {"n_routed_experts": 4, "moe_intermediate_size": 8, "first_k_dense_replace": 1, **LATENT},
    "Llama4Text": {"num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 16, "num_experts_per_tok": 1},
    "GraniteMoe": {"num_local_experts": 4},
    "Olmoe": {"num_experts": 4},
}
IDS = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]])


def mixture(family, implementation="grouped_mm"):
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    if family != "Llama4Text":
        model.set_experts_implementation(implementation)
    return model


def out(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("addresses", [["experts.w1", "router"], ["experts.gate", "experts.w2"], ["experts"]], ids=str)
def test_a_lora_on_experts_and_routers_acts_saves_merges_and_leaves(tmp_path, family, addresses):
    model = mixture(family)
    before, names = out(model), {*model.state_dict()}
    delta = LoraModel(model, lora_r=3, modified_modules=addresses)
    assert torch.equal(out(model), before)
    stir(delta)
    expected = out(model)
    delta.freeze_module(exclude=["deltas"])
    delta.save_finetuned(tmp_path / "delta")
    again = mixture(family)
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=again)
    delta.merge()
    merged = out(model)
    delta.unmerge()
    unmerged = out(model)
    delta.remove()

    assert (expected - before).abs().max() > 1e-3
    assert torch.equal(out(again), expected)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(unmerged, expected)
    assert torch.equal(out(model), before)
    assert {*model.state_dict()} == names
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_implementation_of_experts_computes_the_same(family, shared):
    outputs, gradients = [], []
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model = mixture(family, implementation)
        delta = LoraModel(model, lora_r=3, modified_modules=["experts"], share_experts=shared)
        stir(delta)
        loss = model(input_ids=IDS).logits.square().sum()
        loss.backward()
        outputs.append(out(model))
        gradients.append([parameter.grad for parameter in delta.parameters()])

    for output, gradient in zip(outputs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(output, outputs[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient, gradients[0], atol=1e-3, rtol=1e-3)


def test_the_update_of_an_expert_is_scaled_b_a_and_that_of_a_part_stays_in_its_rows():
    model = mixture("GptOss")
    experts = model.model.layers[0].mlp.experts
    before = experts.gate_up_proj.detach().clone()
    delta = LoraModel(model, lora_r=2, lora_alpha=6, modified_modules=["0.mlp.experts.gate_up_proj"])
    part = LoraModel(mixture("GptOss"), lora_r=2, modified_modules=["experts.w1"])
    stir(delta)
    stir(part)
    tensors = dict(delta.named_parameters())
    a, b = (tensors[f"model.layers.0.mlp.experts.deltas.gate_up_proj.lora_{side}"] for side in "AB")
    delta.merge()
    other = part.backbone_model.model.layers[0].mlp.experts
    part.merge()

    assert (a.shape, b.shape) == ((4, 2, 16), (4, 32, 2))
    torch.testing.assert_close(experts.gate_up_proj, before + 3 * (b @ a).mT, atol=1e-5, rtol=1e-4)
    assert torch.equal(other.gate_up_proj[..., ::2], before[..., ::2])  # gpt-oss has gate and w1 in turn
    assert not torch.equal(other.gate_up_proj[..., 1::2], before[..., 1::2])


def test_copies_run_with_their_own_values_and_two_deltas_add_up():
    model = mixture("Mixtral")
    first = LoraModel(model, lora_r=2, modified_modules=["experts"])
    second = LoraModel(model, lora_r=2, modified_modules=["experts.w2"])
    stir(first)
    stir(second)
    expected = out(model)
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(out(clone), expected)
        stir(deltas_of(clone)[first.name], seed=5)
        assert not torch.equal(out(clone), expected)
    assert torch.equal(out(model), expected)
    second.detach()
    first.merge()
    alone = out(model)
    first.unmerge()
    torch.testing.assert_close(out(model), alone, atol=1e-5, rtol=1e-4)


def test_checkpointed_training_has_the_same_gradients():
    model = mixture("Mixtral").train()
    delta = LoraModel(model, lora_r=2, modified_modules=["experts", "router"])
    stir(delta)
    gradients = []
    for turn in (model.activation_checkpointing_disable, model.activation_checkpointing_enable):
        turn()
        model.zero_grad()
        model(input_ids=IDS).logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in delta.parameters()])

    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_a_mixture_compiles_as_one_graph(implementation):
    model = mixture("Mixtral", implementation)
    stir(LoraModel(model, lora_r=2, modified_modules=["experts", "router"]))
    block, hidden = model.model.layers[0].mlp, torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)(hidden)

        torch.testing.assert_close(compiled, block(hidden))


def test_half_precision_weights_compute_in_their_own():
    model = mixture("Mixtral").to(torch.bfloat16)
    delta = LoraModel(model, lora_r=3, modified_modules=["experts"])
    stir(delta)
    expected = out(model)
    delta.merge()

    assert all(parameter.dtype == torch.float32 for parameter in delta.parameters())
    assert expected.dtype == torch.bfloat16
    torch.testing.assert_close(out(model), expected, atol=0.1, rtol=0.1)


class Picture(nn.Module):
    """A model with parameters of its own."""

    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.ones(1, 5, 8))
        self.class_embedding = nn.Parameter(torch.ones(8))
        self.unread = nn.Parameter(torch.ones(3, 8))
        self.codes = nn.Parameter(torch.ones(3, 8, dtype=torch.int8), requires_grad=False)
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x + self.pos_embed) + self.class_embedding + self.codes.sum()


def test_a_parameter_that_is_named_is_summed_for_the_call(tmp_path):
    model, x = Picture(), torch.randn(2, 5, 8)
    plain = model(x)
    delta = LoraModel(model, lora_r=2, modified_modules=["pos_embed", "inner"])
    stir(delta)
    delta.freeze_module(exclude=["deltas"])
    expected = model(x)
    delta.save_finetuned(tmp_path / "delta")
    delta.merge()
    torch.testing.assert_close(model(x), expected)
    delta.unmerge()
    again = copy.deepcopy(model)
    deltas_of(again)[delta.name].remove()
    loaded = AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=again)

    assert {"deltas.pos_embed.lora_A", "deltas.pos_embed.lora_B"} < {*loaded.state_dict()}
    assert torch.equal(again(x), expected)
    loaded.remove()
    assert torch.equal(again(x), plain)


@pytest.mark.parametrize(
    ("addresses", "error", "reason"),
    [
        (["unread"], TargetError, "does not read it itself"),
        (["codes"], TargetError, "codes"),
        (["class_embedding"], NoMatchError, "class_embedding"),  # a vector has no rank
    ],
)
def test_a_parameter_that_cannot_hold_a_lora_is_refused(addresses, error, reason):
    model = Picture()
    with pytest.raises(error, match=reason):
        LoraModel(model, modified_modules=addresses)
    assert not any("deltas" in name for name, _ in model.named_modules())


def test_what_a_parameter_cannot_have_is_refused_in_words():
    model = mixture("Mixtral")
    for option in ({"use_dora": True}, {"use_bias": True}, {"lora_dropout": 0.1}):
        with pytest.raises(ConfigError, match="parameter that its module reads itself"):
            LoraModel(model, modified_modules=["experts"], **option)
    with pytest.raises(NoMatchError, match=r"experts\.w3"):
        LoraModel(model, modified_modules=["experts.w3"])
    with pytest.raises(NoMatchError, match="only a LoRA acts on such"):
        AdapterModel(model, modified_modules=["experts.w1"])
    with pytest.raises(NoMatchError, match=r"experts\.w1"):
        LoraModel(model, modified_modules=["experts.w11"])
    with pytest.raises(TargetError, match=r"addressed as experts\.w1"):
        LoraModel(model, modified_modules=["ff.w1"])
    delta = LoraModel(model, modified_modules=["experts.w1"], rank_pattern={"experts.gate_up_proj": 2})
    assert {parameter.shape[1:] for name, parameter in delta.named_parameters() if name.endswith("A")} == {(2, 16)}
    with pytest.raises(RouteError, match="all rows of a batch share"), route(model, [delta, None]):
        pass


def test_shared_experts_have_names_of_their_own():
    model = mixture("DeepseekV3")
    shared = LoraModel(model, modified_modules=["shared_expert.w1"])
    others = LoraModel(model, modified_modules=["experts.w1"])

    assert [*shared.insertions] == ["model.layers.1.mlp.shared_experts.up_proj"]
    assert [*others.insertions] == ["model.layers.1.mlp.experts"]


def test_the_lora_of_experts_and_parameters_has_a_strength_and_rates_of_its_own():
    model = mixture("Mixtral")
    bare = out(model)
    delta = LoraModel(model, lora_r=3, modified_modules=["experts.w1", "router"])
    stir(delta)
    full = out(model)
    delta.scale(0.5)
    half = out(model)
    with delta.scaled(0):
        none = out(model)
    delta.merge()

    torch.testing.assert_close(none, bare)
    assert not torch.allclose(half, full, atol=1e-3)
    torch.testing.assert_close(out(model), half, atol=1e-5, rtol=1e-4)
    delta.unmerge()
    delta.scale(1)
    assert torch.equal(out(model), full)
    assert {group["lr"] for group in delta.parameter_groups(1.0, ratio=4)} == {1.0, 4.0}


def test_the_lora_of_a_parameter_has_the_default_initialisation_alone():
    with pytest.raises(TargetError, match="of parameters that a module reads itself"):
        LoraModel(mixture("Mixtral"), modified_modules=["experts.w1"], init_lora_weights="gaussian")


def mamba():
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=8, hidden_size=8, state_size=2, num_hidden_layers=2, expand=2)
    return transformers.MambaForCausalLM(config).eval()


def test_a_lora_acts_on_the_weight_of_a_layer_that_is_never_called(tmp_path):
    ids, model = torch.tensor([[1, 2, 3]]), mamba()
    bare = model(ids).logits
    one = LoraModel(model, modified_modules=["in_proj", "dt_proj"], rank_pattern={"dt_proj": 2})
    two = LoraModel(model, lora_r=3, modified_modules=["dt_proj.weight"])
    one.freeze_module(), stir(one), stir(two, 5)
    with one.off():
        expected = model(ids).logits
    delta = {name: p.detach() for name, p in two.named_parameters()}
    for number, layer in enumerate(mixers := mamba().backbone.layers):
        down, up = (delta[f"backbone.layers.{number}.mixer.deltas.dt_proj.lora_{side}"] for side in "AB")
        layer.mixer.dt_proj.weight.data += two.config.scale * up @ down
    by_hand = mamba()
    by_hand.backbone.layers = mixers

    torch.testing.assert_close(by_hand(ids).logits, expected)
    two.remove()
    one.save_finetuned(tmp_path)
    again = mamba()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, again)
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert not torch.allclose(bare, again(ids).logits, atol=1e-3)
    loaded.merge()
    torch.testing.assert_close(model(ids).logits, again(ids).logits)
    loaded.unmerge(), loaded.detach()
    assert torch.equal(bare, again(ids).logits)
    with pytest.raises(ConfigError, match="a LoRA of PEFT would not act there"):
        one.export(tmp_path / "peft")


def test_experts_and_routers_are_listed_by_their_common_names():
    model = mixture("DeepseekV3")
    names = common_names(model)
    ff = "model.decoder.block.*.ff"
    assert names[f"{ff}.experts.w1"] == (["model.layers.*.mlp.experts.gate_up_proj"], 1)
    assert names[f"{ff}.router"] == (["model.layers.*.mlp.gate.weight"], 1)
    assert names[f"{ff}.shared_expert.w1"] == (["model.layers.*.mlp.shared_experts.up_proj"], 1)
    common = tree_json(model)["common"]
    assert common["model.layers.1.mlp.experts"] == "experts"
    assert common["model.layers.1.mlp.gate"] == "router"
    assert common["model.layers.1.mlp.shared_experts.up_proj"] == "shared_expert.w1"
