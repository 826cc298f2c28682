"""LoRA, LoHa and LoKr of diffusers, kohya and LyCORIS against their formulas and against the outputs of these programs."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltahub import AutoDeltaModel, LoraModel
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError
from tests.backbones import untouched
from tests.formats.image_backbones import DRAW, CLIPTextModel, UNet2DConditionModel, draw, made, output, updated

FIXTURES = Path(__file__).parents[1] / "fixtures" / "diffusers"  # of diffusers 0.42.1 and LyCORIS 4.1.3
DOWN = "down_blocks.0.attentions.0"
ATTENTION = f"{DOWN}.transformer_blocks.0.attn1"
QUERY, OUT = f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0"
POINTS, KERNEL, STRIDED = f"{DOWN}.proj_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.downsamplers.0.conv"
TEXT_QUERY = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def same_values_in_any_order():
    DRAW.manual_seed(1)


@pytest.fixture(scope="module")
def unet():
    return made(UNet2DConditionModel)


@pytest.fixture(scope="module")
def text_encoder():
    return made(CLIPTextModel)


def factors(backbone, layer, rank):
    """A and B of a layer as its LoRA keeps them, and their product."""
    weight = backbone.get_submodule(layer).weight
    down, up = draw(rank, *weight.shape[1:]), draw(len(weight), rank, *[1] * (weight.dim() - 2))
    return down, up, up.flatten(1) @ down.flatten(1)


def saved(folder, tensors, **metadata):
    folder.mkdir(exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "weights.safetensors",
        {"format": "pt", **metadata},
    )
    return folder


def loaded(folder, backbone, **options):
    backbone = copy.deepcopy(backbone)
    return AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **options), backbone


def same(found, expected):
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def flat(prefix, layer):
    return f"{prefix}_{layer.replace('.', '_')}"


@pytest.mark.parametrize("name", ["diffusers", "locon", "loha", "lokr"])
def test_a_file_gives_the_output_of_its_own_program(name):
    backbone = UNet2DConditionModel().eval()
    backbone.load_state_dict(load_file(FIXTURES / "backbone.safetensors"))
    expected = load_file(FIXTURES / name / "io.safetensors")["output"]
    assert same(output(loaded(FIXTURES / name / "delta", backbone)[1]), expected)


ENDINGS = {
    "lora_A": (".lora_A.weight", ".lora_B.weight"),
    "lora.down": (".lora.down.weight", ".lora.up.weight"),
    "lora_linear_layer": (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_a_lora_of_diffusers_has_the_scale_1_and_a_rank_for_each_layer(prefix, ending, tmp_path, unet):
    tensors, changes = {}, {}
    for rank, layer in enumerate((QUERY, OUT, POINTS, KERNEL, STRIDED, "conv_in", "proj_out"), 1):
        down, up, changes[layer] = factors(unet, layer, rank)
        tensors |= dict(zip((f"{prefix}{layer}{end}" for end in ENDINGS[ending]), (down, up), strict=True))
    delta, backbone = loaded(saved(tmp_path / "in", tensors), unet)
    assert same(output(backbone), updated(unet, changes))

    delta.save_finetuned(tmp_path / "out")
    assert torch.equal(output(loaded(tmp_path / "out", unet)[1]), output(backbone))
    delta.merge()
    assert same(output(backbone), updated(unet, changes))


def test_names_of_the_attention_processors_of_older_releases_are_those_of_its_layers(tmp_path, unet, text_encoder):
    names = {QUERY: f"unet.{ATTENTION}.processor.to_q_lora", OUT: f"unet.{ATTENTION}.processor.to_out_lora"}
    text = "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora"
    made_of = {layer: factors(unet, layer, 2) for layer in names} | {TEXT_QUERY: factors(text_encoder, TEXT_QUERY, 2)}
    tensors = {}
    for layer, name in {**names, TEXT_QUERY: text}.items():
        tensors |= {f"{name}.down.weight": made_of[layer][0], f"{name}.up.weight": made_of[layer][1]}
    folder = saved(tmp_path, tensors)
    assert same(output(loaded(folder, unet)[1]), updated(unet, {layer: made_of[layer][2] for layer in names}))
    assert same(output(loaded(folder, text_encoder)[1]), updated(text_encoder, {TEXT_QUERY: made_of[TEXT_QUERY][2]}))


def kohya(backbone, prefix, layers, *, rank=2, alpha=3.0, name=lambda layer: layer):
    """A file of kohya, and the updates of the layers."""
    tensors, changes = {}, {}
    for layer in layers:
        down, up, change = factors(backbone, layer, rank)
        stem, changes[layer] = flat(prefix, name(layer)), alpha / rank * change
        tensors |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(alpha),
        }
    return tensors, changes


def test_a_file_of_kohya_is_read_for_each_of_its_models_and_says_what_it_left_out(tmp_path, unet, text_encoder, caplog):
    first, expected = kohya(unet, "lora_unet", [QUERY, POINTS, KERNEL, STRIDED])
    second, of_text = kohya(
        text_encoder, "lora_te", [TEXT_QUERY], rank=3, alpha=1.0, name=lambda layer: f"text_model.{layer}"
    )
    folder = saved(tmp_path, {**first, **second})
    with caplog.at_level(logging.WARNING, logger="deltahub"):
        delta, backbone = loaded(folder, unet)
    assert same(output(backbone), updated(unet, expected))
    assert "Left out: lora_te (1 layer)" in caplog.text
    assert delta.config.lora_alpha == 3.0
    assert same(output(loaded(folder, text_encoder)[1]), updated(text_encoder, of_text))


def test_the_names_of_the_authors_of_stable_diffusion_are_those_of_the_layers_of_diffusers(tmp_path, unet):
    originals = {
        "conv_in": "input_blocks_0_0",
        KERNEL: "input_blocks_1_0_in_layers_2",
        "down_blocks.0.resnets.0.time_emb_proj": "input_blocks_1_0_emb_layers_1",
        QUERY: "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        STRIDED: "input_blocks_2_0_op",
        "up_blocks.0.attentions.0.proj_out": "output_blocks_0_1_proj_out",
    }
    tensors, changes = kohya(unet, "lora_unet", originals, name=originals.get)
    assert same(output(loaded(saved(tmp_path, tensors), unet)[1]), updated(unet, changes))


def test_a_layer_whose_name_ends_another_name_keeps_its_own_rank_and_scale(tmp_path, unet):
    tensors, changes = {}, {}
    for layer, rank, alpha in (("proj_out", 3, 2.0), (f"{DOWN}.proj_out", 2, 5.0), (QUERY, 2, 5.0)):
        more, change = kohya(unet, "lora_unet", [layer], rank=rank, alpha=alpha)
        tensors, changes = tensors | more, changes | change
    assert same(output(loaded(saved(tmp_path, tensors), unet)[1]), updated(unet, changes))


def test_an_update_on_the_only_layer_whose_name_ends_others_acts_on_no_other(tmp_path, unet):
    tensors, changes = kohya(unet, "lora_unet", ["proj_out"])
    assert same(output(loaded(saved(tmp_path, tensors), unet)[1]), updated(unet, changes))


def test_a_core_between_the_factors_of_a_convolution_is_exact(tmp_path, unet):
    down, core, up = draw(2, 8, 1, 1), draw(2, 2, 3, 3), draw(8, 2, 1, 1)
    stem = flat("lora_unet", KERNEL)
    tensors = {f"{stem}.lora_{name}.weight": tensor for name, tensor in (("down", down), ("mid", core), ("up", up))}
    change = torch.einsum("ijkl,pi,jr->prkl", core, up[:, :, 0, 0], down[:, :, 0, 0])
    assert same(output(loaded(saved(tmp_path, tensors), unet)[1]), updated(unet, {KERNEL: change}))


def test_a_dora_scales_each_output(tmp_path, unet):
    tensors, changes = kohya(unet, "lora_unet", [QUERY])
    weight, magnitude = unet.get_submodule(QUERY).weight.detach(), draw(8, 1).abs() + 0.5
    direction = weight + changes[QUERY]
    changed = magnitude * direction / direction.norm(dim=1, keepdim=True) - weight
    folder = saved(tmp_path, {**tensors, f"{flat('lora_unet', QUERY)}.dora_scale": magnitude})
    assert same(output(loaded(folder, unet)[1]), updated(unet, {QUERY: changed}))


CONFIG = {"r": 2, "lora_alpha": 6, "target_modules": ["to_q", "conv1"], "peft_type": "LORA"}


def of_peft(backbone, config, prefix="unet.", ranks=()):
    """A file of diffusers with PEFT's config in its header, and the products of the factors."""
    tensors, products = {}, {}
    for layer in (QUERY, KERNEL):
        down, up, products[layer] = factors(backbone, layer, dict(ranks).get(layer, 2))
        tensors |= {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}
    return tensors, products, json.dumps({f"{prefix}{key}": value for key, value in config.items()})


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_the_config_in_the_header_gives_the_scales(prefix, tmp_path, unet):
    config = {**CONFIG, "rank_pattern": {"conv1": 4}, "alpha_pattern": {"to_q": 1}, "use_rslora": True}
    tensors, products, header = of_peft(unet, config, prefix, {KERNEL: 4})
    changes = {QUERY: 1 / 2**0.5 * products[QUERY], KERNEL: 6 / 2 * products[KERNEL]}
    folder = saved(tmp_path, tensors, lora_adapter_metadata=header)
    assert same(output(loaded(folder, unet)[1]), updated(unet, changes))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"r": 3}, "its config says 3"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save, and does not hold their tensors"),
        ({"bias": "all"}, "does not hold the biases"),
        ({"new_field": 3}, "new_field"),
        ({"lora_alpha": "x"}, "lora_adapter_metadata"),
        ({"peft_type": "LOHA"}, "holds a LORA, and lora_adapter_metadata says 'LOHA'"),
        ({"use_dora": True}, "without a magnitude"),
    ],
)
def test_a_config_in_the_header_that_is_not_of_the_tensors_is_refused(config, match, tmp_path, unet):
    tensors, _, header = of_peft(unet, CONFIG | config)
    folder = saved(tmp_path, tensors, lora_adapter_metadata=header)
    with untouched(unet), pytest.raises(DeltaHubError, match=match):
        AutoDeltaModel.from_finetuned(folder, backbone_model=unet)


def test_a_loha_is_read_on_linear_layers_and_convolutions_also_with_a_core(tmp_path, unet):
    tensors, changes = {}, {}
    for layer, columns in ((QUERY, 8), (STRIDED, 72)):
        sides = [draw(8, 2), draw(2, columns), draw(8, 2), draw(2, columns)]
        names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        tensors |= {f"{flat('lora_unet', layer)}.{name}": side for name, side in zip(names, sides, strict=True)}
        changes[layer] = 1.5 * (sides[0] @ sides[1]) * (sides[2] @ sides[3])
    cores = [draw(2, 2, 3, 3), draw(2, 8), draw(2, 8)], [draw(2, 2, 3, 3), draw(2, 8), draw(2, 8)]
    for number, (core, up, down) in enumerate(cores, 1):
        stem = f"{flat('lora_unet', KERNEL)}.hada_"
        tensors |= {f"{stem}t{number}": core, f"{stem}w{number}_a": up, f"{stem}w{number}_b": down}
    first, second = (torch.einsum("ijkl,ip,jr->prkl", *core) for core in cores)
    changes[KERNEL] = 1.5 * first * second
    alphas = {f"{flat('lora_unet', layer)}.alpha": torch.tensor(3) for layer in changes}
    delta, backbone = loaded(saved(tmp_path, {**tensors, **alphas}), unet)
    assert delta.delta_type == "weight_update"
    assert same(output(backbone), updated(unet, changes))


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [
        ({"w1": (2, 2), "w2": (4, 4)}, 1.0),
        ({"w1": (4, 4), "w2_a": (2, 1)}, None),
        ({"w1": (1, 1), "w2_a": (8, 3), "w2_b": (3, 8)}, 5 / 3),
        ({"w1": (2, 2), "w2_a": (4, 1), "w2_b": (1, 4)}, 5.0),
        ({"w1_a": (8, 1), "w1_b": (1, 8), "w2": (1, 1)}, 5.0),
        ({"w1": (2, 4), "w2": (4, 2)}, None),
        ({"w1": (2, 2), "w2": (4, 3)}, None),
        ({"w1": (2, 2)}, None),
    ],
)
def test_a_lokr_is_read_whatever_its_factors_or_refused(sizes, scale, tmp_path, unet):
    leaves = {f"lokr_{name}": draw(*shape) for name, shape in sizes.items()}
    tensors = {f"{flat('lycoris', QUERY)}.{leaf}": tensor for leaf, tensor in leaves.items()}
    folder = saved(tmp_path, {**tensors, f"{flat('lycoris', QUERY)}.alpha": torch.tensor(5.0)})
    if scale is None:
        with untouched(unet), pytest.raises(DeltaHubError, match=QUERY):
            AutoDeltaModel.from_finetuned(folder, backbone_model=unet)
        return
    one, two = (
        leaves[f"lokr_w{n}"] if f"lokr_w{n}" in leaves else leaves[f"lokr_w{n}_a"] @ leaves[f"lokr_w{n}_b"]
        for n in (1, 2)
    )
    assert same(output(loaded(folder, unet)[1]), updated(unet, {QUERY: scale * torch.kron(one, two)}))


STEM = flat("lora_unet", QUERY)
OTHER = flat("lora_unet", OUT)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({f"{STEM}.lora_up.weight": None}, "its lora_B is missing"),
        ({f"{STEM}.lora_down.weight": None}, "its lora_A is missing"),
        ({f"{STEM}.lora_up.weight": torch.ones(8, 3)}, "do not make an update of this layer"),
        ({f"{STEM}.lora_up.weight": torch.ones(9, 2)}, r"is \[9, 8\], expected \[8, 8\]"),
        ({f"{STEM}.lora_down.weight": torch.ones(2)}, "do not make an update"),
        ({f"{STEM}.lora_down.weight": torch.tensor(2.0)}, "a single number"),
        ({f"{STEM}.lora_down.weight": torch.ones(2, 8, 3, 3)}, "expected"),
        ({f"{STEM}.lora_down.weight": torch.ones(2, 8, dtype=torch.complex64)}, "complex64"),
        ({f"{STEM}.lora_down.weight": torch.ones(2, 8, dtype=torch.int8)}, "int8"),
        ({f"{STEM}.lora_down.weight": torch.full((2, 8), torch.nan)}, "not finite"),
        *(
            ({f"{STEM}.alpha": torch.tensor(value)}, "expected a positive number")
            for value in (torch.nan, torch.inf, 0.0, -1.0)
        ),
        ({f"{STEM}.alpha": torch.ones(2)}, "2 numbers"),
        ({f"{STEM}.alpha": torch.tensor(True)}, "bool"),
        ({f"{STEM}.alpha": torch.tensor(1j)}, "complex64"),
        ({f"{STEM}.alpha": None}, "none for others"),
        ({f"{STEM}.diff": torch.ones(8, 8)}, "diff"),
        ({f"{STEM}.oft_blocks": torch.ones(2, 4, 4)}, "oft_blocks"),
        ({f"{STEM}.hada_w1_a": torch.ones(8, 2)}, "LOHA with lora_A"),
        ({f"{STEM}.dora_scale": torch.ones(1, 8)}, "for each input"),
        ({f"{STEM}.dora_scale": torch.ones(8, 1)}, "DoRA on some layers"),
        ({f"{STEM}.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "expected|do not make"),
        ({f"unet.{QUERY}.lora_A.weight": torch.ones(2, 8)}, "unet"),
        ({"lora_unet_mid_block_proj.lora_down.weight": torch.ones(2, 8)}, "lacks 1 of them, such as mid_block_proj"),
    ],
)
def test_a_damaged_file_is_refused_before_anything_changes(change, match, tmp_path, unet):
    tensors, _ = kohya(unet, "lora_unet", [QUERY, OUT])
    tensors |= change
    folder = saved(tmp_path, {name: tensor for name, tensor in tensors.items() if tensor is not None})
    with untouched(unet), pytest.raises((CheckpointError, ConfigError), match=match):
        AutoDeltaModel.from_finetuned(folder, backbone_model=unet)


def test_two_tensors_for_one_place_are_refused(tmp_path, unet):
    tensors, _ = kohya(unet, "lora_unet", [KERNEL])
    twice, _ = kohya(unet, "lora_unet", [KERNEL], name=lambda _: "input_blocks_1_0_in_layers_2")
    with pytest.raises(CheckpointError, match=f"two tensors for {KERNEL}"):
        AutoDeltaModel.from_finetuned(saved(tmp_path, tensors | twice), backbone_model=unet)


def test_two_parts_that_both_fit_are_refused(tmp_path, text_encoder):
    tensors = {}
    for prefix in ("lora_te1", "lora_te2"):
        tensors |= kohya(text_encoder, prefix, [TEXT_QUERY])[0]
    with pytest.raises(CheckpointError, match="lora_te1 and lora_te2, and both fit"):
        AutoDeltaModel.from_finetuned(saved(tmp_path, tensors), backbone_model=text_encoder)


def test_of_two_text_encoders_the_one_of_the_right_width_is_taken(tmp_path, text_encoder):
    wide = CLIPTextModel(12)
    first, changes = kohya(text_encoder, "lora_te1", [TEXT_QUERY])
    second, _ = kohya(wide, "lora_te2", [TEXT_QUERY])
    assert same(output(loaded(saved(tmp_path, first | second), text_encoder)[1]), updated(text_encoder, changes))


def test_a_file_of_another_model_says_how_to_convert_it(tmp_path, unet, text_encoder):
    tensors, _ = kohya(text_encoder, "lora_te", [TEXT_QUERY])
    with (
        untouched(unet),
        pytest.raises(CheckpointError, match=r"lora_te .*has none of these layers.*load_lora_weights"),
    ):
        AutoDeltaModel.from_finetuned(saved(tmp_path, tensors), backbone_model=unet)


def test_a_flattened_name_that_may_mean_two_layers_is_refused(tmp_path):
    backbone = nn.ModuleDict({"a_b": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Linear(4, 4)})})
    stem = "lycoris_a_b"
    tensors = {f"{stem}.lora_down.weight": draw(2, 4), f"{stem}.lora_up.weight": draw(4, 2)}
    with pytest.raises(CheckpointError, match=r"a_b in the file may mean a\.b or a_b"):
        AutoDeltaModel.from_finetuned(saved(tmp_path, tensors), backbone_model=backbone)


def test_lycoris_with_rslora_is_refused_because_its_releases_differ(tmp_path, unet):
    tensors, _ = kohya(unet, "lora_unet", [QUERY])
    folder = saved(tmp_path, tensors, ss_network_args=json.dumps({"algo": "lora", "rs_lora": "True"}))
    with pytest.raises(ConfigError, match="rs_lora"):
        AutoDeltaModel.from_finetuned(folder, backbone_model=unet)


def test_half_precision_is_computed_in_float32(tmp_path, unet):
    tensors, _ = kohya(unet, "lora_unet", [QUERY])
    half = {name: tensor.half() for name, tensor in tensors.items()}
    stem = flat("lora_unet", QUERY)
    expected = 1.5 * half[f"{stem}.lora_up.weight"].float() @ half[f"{stem}.lora_down.weight"].float()
    delta, backbone = loaded(saved(tmp_path, half), unet)
    assert same(output(backbone), updated(unet, {QUERY: expected}))
    assert {parameter.dtype for parameter in delta.parameters()} == {torch.float32}


def test_factors_of_different_precisions_are_computed_in_the_widest(tmp_path, unet):
    tensors, changes = kohya(unet, "lora_unet", [QUERY])
    tensors[f"{flat('lora_unet', QUERY)}.lora_up.weight"] = tensors[
        f"{flat('lora_unet', QUERY)}.lora_up.weight"
    ].double()
    assert same(output(loaded(saved(tmp_path, tensors), unet)[1]), updated(unet, changes))


# ----- writing -----

LAYERS = ["to_q", "proj_in", "conv1", "downsamplers.0.conv", "[r]^proj_out$"]
METHODS = {
    "lora": {"lora_r": 3, "lora_alpha": 4},
    "patterns": {"lora_r": 3, "use_rslora": True, "rank_pattern": {"conv1": 2}, "alpha_pattern": {"to_q": 1}},
    "dora": {"lora_r": 2, "use_dora": True, "modified_modules": ["to_q", "to_v"]},
    "bias": {"lora_r": 2, "use_bias": True, "modified_modules": ["to_q", "to_v"]},
}


def trained(backbone, **options):
    """A LoRA with values on a copy of a backbone."""
    delta = LoraModel(copy.deepcopy(backbone), **{"modified_modules": LAYERS, "common_structure": False, **options})
    delta.freeze_module()
    for parameter in delta.parameters():
        parameter.data = draw(*parameter.shape)
    return delta


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("method", METHODS)
def test_a_lora_comes_back_from_a_written_file(method, form, tmp_path, unet):
    delta = trained(unet, **METHODS[method])
    if (method, form) == ("bias", "kohya"):
        with pytest.raises(ConfigError, match="no bias of B"):
            delta.export(tmp_path, form)
        return
    delta.export(tmp_path, form)
    assert same(output(loaded(tmp_path, unet)[1]), output(delta.backbone_model))


def test_a_file_for_diffusers_needs_no_config_to_give_its_scale(tmp_path, unet):
    delta = trained(unet, **METHODS["patterns"])
    delta.export(tmp_path / "out", "diffusers")
    tensors = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert {name.partition(".")[0] for name in tensors} == {"unet"}
    assert same(output(loaded(saved(tmp_path / "bare", tensors), unet)[1]), output(delta.backbone_model))


def test_a_text_encoder_is_written_with_the_names_that_diffusers_expects(tmp_path, text_encoder):
    delta = trained(text_encoder, modified_modules=["q_proj", "fc1"], lora_r=2)
    delta.export(tmp_path, "diffusers")
    assert f"text_encoder.text_model.{TEXT_QUERY}.lora_linear_layer.up.weight" in load_file(
        tmp_path / "pytorch_lora_weights.safetensors"
    )
    assert same(output(loaded(tmp_path, text_encoder)[1]), output(delta.backbone_model))
    with pytest.raises(ConfigError, match="U-Nets of diffusers"):
        delta.export(tmp_path / "kohya", "kohya")


def test_a_model_with_several_names_in_pipelines_is_refused(tmp_path):
    backbone = nn.ModuleDict({"proj": nn.Linear(4, 4)})
    with pytest.raises(ConfigError, match="not known for a ModuleDict"):
        trained(backbone, modified_modules=["proj"]).export(tmp_path, "diffusers")
