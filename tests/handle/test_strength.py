import copy
import itertools
import json
import pickle
import threading

import pytest
import torch

import deltahub
from deltahub import AutoDeltaModel, LoraConfig, LoraModel, PrefixModel, SoftPromptModel, UnionModel
from deltahub.errors import ConfigError, MergeError
from tests.backbones import gpt2, logits_of, stir

METHODS = {
    "lora": {"delta_type": "lora"},
    "dora": {"delta_type": "lora", "use_dora": True},
    "lora of an embedding": {"delta_type": "lora", "modified_modules": ["wte"]},
    "adapter": {"delta_type": "adapter"},
    "adapter at the input": {"delta_type": "adapter", "at_input": True, "modified_modules": ["ln_1"]},
    "parallel adapter": {"delta_type": "parallel_adapter"},
    "ia3": {"delta_type": "ia3"},
    "bitfit": {"delta_type": "bitfit"},
    "layer norm": {"delta_type": "layer_norm"},
    "loha": {"delta_type": "weight_update", "method": "loha"},
}


def trained(options, **more):
    """A trained delta on a backbone, and the logits without and with it."""
    backbone = gpt2()
    bare = logits_of(backbone)
    delta = AutoDeltaModel.from_config({**options, **more}, backbone)
    delta.freeze_module()
    stir(delta)
    return backbone, delta, bare, logits_of(backbone)


@pytest.mark.parametrize("name", METHODS)
def test_a_delta_acts_by_its_strength_and_keeps_it_when_saved(name, tmp_path):
    backbone, delta, bare, full = trained(METHODS[name])
    delta.scale(0.5)
    half = logits_of(backbone)

    assert not torch.equal(half, full)
    with delta.scaled(0):
        assert torch.equal(logits_of(backbone), bare)
    with delta.scaled(1):
        assert torch.equal(logits_of(backbone), full)
    assert torch.equal(logits_of(backbone), half)
    assert torch.equal(logits_of(copy.deepcopy(backbone)), half)
    with deltahub.route(backbone, [delta] * len(half)):
        assert torch.equal(logits_of(backbone), half)
    delta.save_finetuned(tmp_path)
    fresh = gpt2()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, fresh)
    assert torch.equal(logits_of(fresh), half)
    loaded.scale(1)
    assert torch.equal(logits_of(fresh), full)
    assert "strength" not in loaded.config.to_dict()


@pytest.mark.parametrize("name", ["lora", "dora", "ia3", "bitfit", "layer norm", "loha"])
def test_a_merge_has_the_strength_and_it_cannot_change_meanwhile(name):
    backbone, delta, _, full = trained(METHODS[name])
    delta.scale(0.5)
    half = logits_of(backbone)
    delta.merge()

    assert torch.allclose(logits_of(backbone), half, atol=1e-5)
    with pytest.raises(MergeError):
        delta.scale(1)
    delta.unmerge()
    delta.scale(1)
    assert torch.equal(logits_of(backbone), full)


def test_a_lora_of_half_strength_is_one_of_half_alpha():
    backbone, delta, *_ = trained({"delta_type": "lora", "lora_alpha": 16})
    delta.scale(0.5)
    other = gpt2()
    twin = LoraModel(other, lora_alpha=8)
    twin.freeze_module()
    twin.load_state_dict(delta.state_dict())

    assert torch.equal(logits_of(other), logits_of(backbone))


def test_rows_are_routed_through_loras_of_different_strengths():
    backbone, delta, bare, _ = trained(METHODS["lora"])
    other = LoraModel(backbone, name="other")
    other.freeze_module()
    stir(other)
    other.scale(-0.3)
    delta.detach()
    alone = logits_of(backbone)
    delta.attach()
    with deltahub.route(backbone, [other, None]):
        rows = logits_of(backbone)

    assert torch.allclose(rows[0], alone[0], atol=1e-5)
    assert torch.equal(rows[1], bare[1])


def test_a_step_may_follow_a_change_of_strength():
    backbone, delta, *_ = trained(METHODS["adapter"])
    with delta.scaled(0.5):
        loss = backbone(input_ids=torch.tensor([[1, 2, 3]])).logits.square().mean()
    delta.scale(0.2)
    loss.backward()

    assert all(parameter.grad is not None for parameter in delta.parameters())


def test_the_alpha_of_an_exported_lora_has_its_strength(tmp_path):
    _, delta, *_ = trained(
        {"delta_type": "lora", "lora_alpha": 16, "alpha_pattern": {"0.mlp.c_fc": 8}, "modified_modules": ["c_fc"]}
    )
    delta.scale(0.25)
    delta.export(tmp_path / "peft", verify=True)
    delta.save_finetuned(tmp_path / "saved")
    deltahub.export_peft(tmp_path / "saved", tmp_path / "again", backbone=delta.backbone_model)
    written = [(tmp_path / name / "adapter_config.json").read_bytes() for name in ("peft", "again")]
    assert json.loads(written[0])["lora_alpha"] == json.loads(written[1])["lora_alpha"]
    with pytest.raises(ConfigError, match="names of PEFT carry no strength"):
        delta.named_tensors("peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    delta.save_finetuned(tmp_path / "own")
    fresh = gpt2()
    deltahub.scale(tmp_path / "own", 2.0, tmp_path / "twice")
    doubled = AutoDeltaModel.from_finetuned(tmp_path / "twice", fresh)
    delta.scale(0.5)

    assert config["lora_alpha"] == 4
    assert list(config["alpha_pattern"].values()) == [2]
    assert doubled.strength == 1
    assert torch.allclose(logits_of(fresh), logits_of(delta.backbone_model), atol=1e-6)


def test_a_strength_that_another_format_cannot_hold_is_refused(tmp_path):
    _, delta, *_ = trained(METHODS["ia3"])
    delta.scale(0.5)

    with pytest.raises(ConfigError, match="only DeltaHub keeps for a ia3"):
        delta.export(tmp_path / "peft")


@pytest.mark.parametrize(("kind", "options"), [(PrefixModel, {}), (SoftPromptModel, {"soft_token_num": 2})])
def test_methods_that_add_positions_have_no_strength(kind, options):
    delta = kind(gpt2(), **options)

    with pytest.raises(ConfigError, match="has no strength"):
        delta.scale(0.5)
    with pytest.raises(ConfigError, match="has no strength"), delta.scaled(0.5):
        pass
    assert delta.strength == 1


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e40, "1", None, True])
def test_a_strength_that_is_not_a_number_is_refused(strength):
    delta = LoraModel(gpt2())

    with pytest.raises(ConfigError, match="is a number of at most"):
        delta.scale(strength)


def test_only_one_block_at_a_time_gives_a_delta_a_strength():
    backbone, delta, *_ = trained(METHODS["lora"])
    errors = []

    def enter():
        try:
            with delta.scaled(0.1):
                pass
        except ConfigError as error:
            errors.append(str(error))

    with delta.scaled(0.5):
        half = logits_of(backbone)
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(timeout=60)
        with pytest.raises(ConfigError, match="Leave it first"):
            delta.scale(2)
        assert torch.equal(logits_of(backbone), half)
    with delta.scaled(0.1):
        assert not torch.equal(logits_of(backbone), half)

    assert "Leave it first" in errors[0]


def test_a_part_of_a_union_leaves_the_strength_to_the_union():
    with pytest.raises(ConfigError, match="Move it there"):
        UnionModel(gpt2(), [LoraConfig(strength=0.5)])
    backbone, delta, bare, _ = trained({"delta_type": "union", "parts": [{"delta_type": "lora"}]})
    delta.scale(0)

    assert torch.equal(logits_of(backbone), bare)


@pytest.mark.slow
def test_compiled_code_takes_other_strengths_without_being_compiled_again():
    backbone, graphs = gpt2(), []
    deltas = [
        AutoDeltaModel.from_config(METHODS[name], backbone) for name in ("lora", "adapter", "adapter at the input")
    ]
    for delta in deltas:
        stir(delta)

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    block, states = backbone.transformer.h[0], torch.randn(2, 3, 16)
    compiled = torch.compile(block, backend=keep, fullgraph=True)
    with torch.no_grad():
        compiled(states)
        for delta in deltas:
            delta.scale(0.9)
        compiled(states)
        count = len(graphs)
        seen = []
        for strength in (0.7, 0.5, 0.3, -2.0, 1.0, 0.8):
            for delta in deltas:
                delta.scale(strength)
            seen.append(compiled(states))
            assert torch.allclose(seen[-1], block(states), atol=1e-5)

    assert len(graphs) == count
    assert not any(torch.allclose(one, other, atol=1e-4) for one, other in itertools.pairwise(seen))


def test_the_lora_of_an_attention_of_torch_has_a_strength():
    attention, x = torch.nn.MultiheadAttention(4, 1).eval(), torch.randn(3, 2, 4)
    model = torch.nn.ModuleDict({"attention": attention})
    bare = attention(x, x, x)[0]
    delta = LoraModel(model, modified_modules=["attention"])
    stir(delta)
    with delta.scaled(0):
        none = attention(x, x, x)[0]

    assert torch.allclose(none, bare, atol=1e-6)
    assert not torch.allclose(attention(x, x, x)[0], bare, atol=1e-4)


def test_a_merge_inside_a_scaled_block_is_refused():
    backbone, delta, _, full = trained(METHODS["lora"])
    with delta.scaled(0.5), pytest.raises(MergeError, match="would stay in the weights"):
        delta.merge()

    assert not delta.merged
    assert torch.equal(logits_of(backbone), full)


@pytest.mark.parametrize(
    "remake", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_made_in_a_scaled_block_is_saved_as_it_acts(remake, tmp_path):
    backbone, delta, _, full = trained(METHODS["adapter"])
    with delta.scaled(0.5):
        half = logits_of(backbone)
        twin = remake(backbone)
    assert torch.equal(logits_of(backbone), full)
    assert torch.equal(logits_of(twin), half)
    (copied,) = deltahub.deltas_of(twin).values()
    assert copied.strength == 0.5
    copied.save_finetuned(tmp_path)
    fresh = gpt2()
    AutoDeltaModel.from_finetuned(tmp_path, fresh)
    assert torch.equal(logits_of(fresh), half)
    copied.scale(1)
    assert torch.equal(logits_of(twin), full)
