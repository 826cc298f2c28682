import copy

import pytest
import torch
from torch import nn

import deltahub.deltas  # noqa: F401  (registers the types)
from deltahub import AdapterModel, AutoDeltaModel, BitFitModel, LoraModel
from deltahub.engine.modules import own_modules
from deltahub.engine.shapes import output_widths
from deltahub.engine.structure.inference import infer
from deltahub.engine.structure.layouts import adjacent_parts
from deltahub.engine.structure.names import StructureMap
from deltahub.engine.structure.targets import find_targets
from deltahub.errors import NoMatchError, TargetError
from tests.backbones import bert, llama, stir, untouched
from tests.engine.families import SIZES, family, run
from tests.engine.roles import behaves_as, fed_by, roles_of

pytestmark = pytest.mark.slow  # every family of models

NO_ATTENTION = ("mamba", "resnet")
# Their attention has no layer for the query that is ever called, so the defaults of LoRA find nothing.
NO_QUERY = (*NO_ATTENTION, "fnet", "wavlm")
# What goes through transformers' attention function is seen there; the others by what their attention returns.
UNSEEN = (
    "bloom",
    "codegen",
    "deberta",
    "falcon",
    "falcon_by_group",
    "falcon_by_head",
    "gpt_neo",
    "gptj",
    "mpt",
    "openai",
)
SPECIAL = ("longformer",)  # its attention has windows, and adds layers of its own for global tokens
FUSED = {
    "bigcode": "attn.c_attn",
    "bigcode_by_head": "attn.c_attn",
    "bloom": "self_attention.query_key_value",
    "codegen": "attn.qkv_proj",
    "deberta": "attention.self.in_proj",
    "falcon": "self_attention.query_key_value",
    "falcon_by_group": "self_attention.query_key_value",
    "falcon_by_head": "self_attention.query_key_value",
    "gpt_neox": "attention.query_key_value",
    "modernbert": "attn.Wqkv",
    "mpt": "attn.Wqkv",
    "openai": "attn.c_attn",
    "phi3": "self_attn.qkv_proj",
}
METHODS = {"lora": LoraModel, "adapter": AdapterModel, "bitfit": BitFitModel}


def named(model, pattern):
    """The real names of what a common name means."""
    return [target.name for target in find_targets(model, [pattern], common_structure=True)]


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {*NO_QUERY, *UNSEEN, *SPECIAL}))
def test_a_layer_called_query_key_or_value_feeds_that_and_nothing_else(name):
    model = family(name)
    roles = [role for _, role, _ in roles_of(model)]
    found = {(layer, role): fed_by(model, lambda: run(model), layer, part) for layer, role, part in roles_of(model)}

    assert set(roles) >= {"q", "v"}
    assert {key: key[1] for key in found} == found


@pytest.mark.parametrize("name", UNSEEN)
def test_the_same_where_the_attention_function_is_the_models_own(name):
    model = family(name)
    structure = StructureMap.of(model)
    attentions = {n: m for n, m in model.named_modules() if structure.common_name(n).endswith(".attn@")}
    first = next(iter(attentions))
    roles = [(layer, role, part) for layer, role, part in roles_of(model) if layer.startswith(f"{first}.")]

    assert {role for _, role, _ in roles} == {"q", "k", "v"}
    for layer, role, part in roles:
        module = model.get_submodule(layer)
        assert role == behaves_as(attentions[first], lambda length: run(model, length), module, part)


@pytest.mark.parametrize("name", FUSED)
def test_the_parts_of_a_fused_layer_are_all_of_its_rows_each_once(name):
    model = family(name)
    layer = next(n for n, _ in model.named_modules() if n.endswith(FUSED[name]))
    width = output_widths(model, {layer: model.get_submodule(layer)})[layer]
    parts = [part for _, part in StructureMap.of(model).variants(layer) if part]
    rows = torch.cat([part.rows(width) for part in parts])

    assert {part.label for part in parts} == {"q", "k", "v"}
    assert [len(part.rows(width)) for part in parts] == [part.width(width) for part in parts]
    assert list(range(width)) == rows.sort().values.tolist()


@pytest.mark.parametrize(("sizes", "groups"), [((1, 1, 1), 1), ((4, 1, 1), 1), ((1, 1, 1), 4), ((2, 1, 1), 2)])
def test_a_part_is_read_and_written_at_its_rows(sizes, groups):
    output = torch.arange(2.0 * 48).view(2, 48)
    for part in adjacent_parts("q,k,v", sizes, groups):
        rows = part.rows(48)
        expected = output.clone()
        expected[:, rows] = -1

        assert torch.equal(output[:, rows], part.read(output))
        assert torch.equal(expected, part.written(output, torch.full((2, len(rows)), -1.0)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", sorted(SIZES))
def test_the_defaults_of_a_method_act_and_come_off_without_a_trace(name, method):
    model = family(name)
    if name in (NO_QUERY if method == "lora" else NO_ATTENTION):
        with untouched(model), pytest.raises(NoMatchError):
            METHODS[method](model)
        return
    expected = run(model)
    delta = METHODS[method](model)
    stir(delta)

    assert not torch.equal(expected, run(model))
    delta.detach()
    assert torch.equal(expected, run(model))


@pytest.mark.parametrize("name", ["phi3", "codegen", "falcon_by_group", "mixtral", "deepseek_v3"])
def test_a_delta_on_an_inferred_place_is_saved_and_loaded(name, tmp_path):
    model = family(name)
    fresh = copy.deepcopy(model)
    delta = LoraModel(model)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path)
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)

    assert torch.equal(run(model), run(fresh))


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("qwen3", "decoder.block.1.attn.proj", ["layers.1.self_attn.o_proj"]),
        ("qwen3", "0.ff.gate", ["layers.0.mlp.gate_proj"]),
        ("qwen3", "decoder.layer_norm", ["norm"]),
        ("electra", "encoder.block.0.attn", ["encoder.layer.0.attention"]),
        ("electra", "block.0.attn.layer_norm", ["encoder.layer.0.attention.output.LayerNorm"]),
        ("electra", "block.0.ff", ["encoder.layer.0.intermediate", "encoder.layer.0.output"]),
        ("albert", "attn.q", ["encoder.albert_layer_groups.0.albert_layers.0.attention.query"]),
        ("mbart", "decoder.block.0.crossattn.v", ["decoder.layers.0.encoder_attn.v_proj"]),
        ("mbart", "encoder.block.0.ff", ["encoder.layers.0.fc1", "encoder.layers.0.fc2"]),
        ("swin", "block.0.ff.w1", [f"encoder.layers.{i}.blocks.0.mlp.fc1" for i in (0, 1)]),
        ("clip", "vision_model.encoder.block.0.attn.k", ["vision_model.encoder.layers.0.self_attn.k_proj"]),
        ("mixtral", "block.0.ff.w2", ["layers.0.mlp"]),
        ("deepseek_v3", "block.0.attn.q", ["layers.0.self_attn.q_b_proj"]),
        ("fnet", "block.0.ff.w2", ["encoder.layer.0.output.dense"]),
        ("gpt_neo", "embeddings", ["wte"]),
    ],
)
def test_a_common_name_means_the_same_place_in_an_inferred_map(name, pattern, expected):
    assert expected == named(family(name), pattern)


def test_a_map_says_whether_it_was_inferred():
    assert StructureMap.of(family("qwen3")).inferred
    assert not StructureMap.of(llama()).inferred
    assert not StructureMap.of(family("resnet")).inferred


def test_experts_without_layers_take_an_adapter_where_they_return_the_hidden_state():
    delta = AdapterModel(family("mixtral"))

    assert "layers.0.mlp" in delta.insertions
    with pytest.raises(TargetError, match=r"layers\.0\.mlp \(MixtralSparseMoeBlock\) cannot hold a LoRA"):
        LoraModel(family("mixtral"), modified_modules=["ff.w2"])


def test_an_address_that_means_nothing_certain_says_which_layers_there_are():
    with pytest.raises(NoMatchError) as caught:
        LoraModel(family("mamba"))

    assert "no part of this backbone is certain to be it" in str(caught.value)
    assert "layers.0 are mixer.in_proj (16 to 64)" in str(caught.value)
    assert "Pass modified_modules with real names" in str(caught.value)


class Attention(nn.Module):
    """A fused layer whose layout nobody knows."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(torch.softmax(q @ k.mT, -1) @ v)


class Stranger(nn.Module):
    """A model that no map and no table knows."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"mixing": Attention(), "other": nn.Linear(8, 8)}) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer["other"](layer["mixing"](x))
        return x


def test_a_fused_layer_of_unknown_layout_has_a_name_as_a_whole_only():
    model = Stranger()

    assert named(model, "attn.qkv") == ["layers.0.mixing.qkv", "layers.1.mixing.qkv"]
    with pytest.raises(NoMatchError):
        LoraModel(model, modified_modules=["attn.q"])


def test_a_fused_layer_whose_attention_does_not_tell_its_heads_has_no_parts():
    model = family("gpt_neox")
    attention = model.layers[0].attention
    attention.config = None
    for key in [key for key in vars(attention) if "heads" in key]:
        delattr(attention, key)

    assert named(model, "0.attn.qkv") == ["layers.0.attention.query_key_value"]


def test_the_default_of_lora_falls_back_to_the_whole_fused_layer():
    delta = LoraModel(Stranger())

    assert list(delta.insertions) == ["layers.0.mixing.qkv", "layers.1.mixing.qkv"]
    assert {p.shape for n, p in delta.named_parameters() if n.endswith("lora_B")} == {(24, 8)}


def test_layers_of_widths_that_do_not_fit_keep_their_names():
    model = nn.Module()
    block = nn.Module()
    block.mlp = nn.Module()
    block.mlp.fc1, block.mlp.fc2 = nn.Linear(8, 16), nn.Linear(12, 8)
    model.layers = nn.ModuleList([block])

    assert infer(dict(own_modules(model))).names == {}


def test_inference_does_not_look_at_deltas():
    model = family("qwen3")
    before = StructureMap.of(model)
    LoraModel(model)
    AdapterModel(model)

    assert before == StructureMap.of(model)


def test_a_backbone_with_an_explicit_map_is_not_inferred():
    structure = StructureMap.of(bert())

    assert structure.guess.names == {}
    assert [prefix for prefix, _ in structure.roots] == ["bert."]
