import pytest
import torch
import transformers

from deltahub import AutoDeltaModel, BitFitModel, LoraModel
from deltahub.engine.site import is_delta_name
from deltahub.engine.structure.layouts import gate_parts
from deltahub.engine.weights import FusedInsertion
from tests.backbones import gpt2, logits_of, stir, tensors_of
from tests.engine.families import family, run

ADDRESS = "transformer.h.0.attn.c_attn"
X = torch.linspace(-1, 1, 32).view(2, 16)


def changes_of(delta):
    """What a delta adds to the q, k and v shares of the fused layer's output."""
    layer = delta.backbone_model.get_submodule(ADDRESS)
    with torch.no_grad():
        changed = layer(X)
        delta.detach()
        return (changed - layer(X)).chunk(3, dim=-1)


@pytest.mark.parametrize(
    ("parts", "touched"),
    [
        (["attn.q"], [True, False, False]),
        (["attn.v", "attn.q"], [True, False, True]),
        (["attn.k"], [False, True, False]),
    ],
)
def test_lora_on_parts_of_a_fused_layer_changes_only_these_parts(parts, touched):
    delta = LoraModel(gpt2(), modified_modules=parts)
    stir(delta)

    assert touched == [bool(share.any()) for share in changes_of(delta)]


def test_each_part_has_an_update_of_its_own_by_the_formula():
    delta = LoraModel(gpt2(), lora_r=2, lora_alpha=6, modified_modules=["0.attn.q", "0.attn.v"])
    stir(delta)

    found = dict(delta.named_parameters())
    assert sorted(found) == [f"{ADDRESS}.deltas.{part}.lora_{leaf}" for part in "qv" for leaf in "AB"]
    for part, share in zip("qkv", changes_of(delta), strict=True):
        if part != "k":
            a, b = (found[f"{ADDRESS}.deltas.{part}.lora_{leaf}"] for leaf in "AB")
            assert torch.allclose(3 * X @ a.T @ b.T, share, atol=1e-5)


def test_the_whole_fused_layer_can_be_meant_as_well():
    delta = LoraModel(gpt2(), modified_modules=["c_attn"])

    assert not isinstance(delta.insertions[ADDRESS], FusedInsertion)
    assert dict(delta.named_parameters())[f"{ADDRESS}.deltas.lora_B"].shape == (48, 8)


def test_bitfit_on_a_part_trains_the_bias_of_that_part():
    delta = BitFitModel(gpt2(), modified_modules=["attn.q"])
    stir(delta)

    assert [bool(share.any()) for share in changes_of(delta)] == [True, False, False]


def test_a_delta_on_parts_is_saved_and_loaded(tmp_path):
    backbone = gpt2()
    delta = LoraModel(backbone)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path)
    fresh = gpt2()
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)

    assert torch.equal(logits_of(backbone), logits_of(fresh))


def test_the_fused_layer_keeps_its_own_tensors():
    backbone = gpt2()
    expected = list(tensors_of(backbone))
    LoraModel(backbone)

    assert expected == [name for name in backbone.state_dict() if not is_delta_name(name)]


@pytest.mark.parametrize("name", ["phi3", "falcon_by_group", "codegen", "gpt_neox", "deepseek_v3", "glm"])
def test_a_delta_on_any_layout_merges_into_its_own_rows_and_comes_out_exactly(name):
    backbone = family(name)
    before, tensors = run(backbone), tensors_of(backbone)
    delta = LoraModel(backbone, modified_modules=["attn.v", "ff.gate" if name == "glm" else "attn.proj"])
    stir(delta)
    expected = run(backbone)

    delta.merge()
    assert not torch.allclose(before, expected, atol=1e-3)
    assert torch.allclose(expected, run(backbone), rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    delta.unmerge()
    delta.detach()
    assert torch.equal(before, run(backbone))
    assert all(torch.equal(tensors[key], value) for key, value in backbone.state_dict().items() if key in tensors)


def mlps():
    """A feed-forward with gate and first matrix in one layer, of each order."""
    text = {"hidden_size": 8, "intermediate_size": 12}
    audio = transformers.models.phi4_multimodal.modeling_phi4_multimodal
    yield "gate_up_proj", audio.Phi4MultimodalAudioMLP(transformers.Phi4MultimodalAudioConfig(**text))
    moonshine = transformers.models.moonshine.modeling_moonshine
    yield "fc1", moonshine.MoonshineDecoderMLP(transformers.MoonshineConfig(**text), "silu")
    for name in ("phi3", "glm", "modernbert"):
        block = family(name).layers[0]
        yield "Wi" if name == "modernbert" else "gate_up_proj", block.mlp


@pytest.mark.parametrize("index", range(5))
def test_gate_is_activated_and_w1_is_not(index):
    layer, mlp = list(mlps())[index]
    width = next(parameter.shape[-1] for parameter in getattr(mlp, layer).parameters() if parameter.dim() == 2)
    x = torch.linspace(-1, 1, 2 * width).view(1, 2, width)
    straight = {}
    for part in gate_parts(mlp):
        found = []
        for scale in (0.0, 1.0, 2.0):

            def scaled(module, args, output, part=part, scale=scale):
                return part.written(output, scale * part.read(output))

            handle = getattr(mlp, layer).register_forward_hook(scaled)
            with torch.no_grad():
                found.append(mlp(x))
            handle.remove()
        straight[part.label] = torch.allclose(found[2] - found[1], found[1] - found[0], rtol=1e-3, atol=1e-6)

    assert straight == {"w1": True, "gate": False}
