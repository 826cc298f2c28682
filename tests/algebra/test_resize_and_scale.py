"""Resized and scaled deltas."""

import math

import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel, resize, scale, verify_lineage
from deltahub.errors import CheckpointError, ConfigError
from tests.algebra.making import RECORD, config_of, numbers, tensors_in, updates_of, write, write_lora, write_peft
from tests.backbones import bert, logits_of, stir


def test_a_lower_rank_is_the_best_approximation_of_each_update(tmp_path):
    delta = write_lora(tmp_path / "a", 1, lora_r=3, use_rslora=True)
    whole, small = updates_of(delta), resize(delta, tmp_path / "b", rank=1)
    actual = updates_of(small.folder)

    for change in small.changes:
        values = torch.linalg.svdvals(whole[change.module])
        lost = float((actual[change.module] - whole[change.module]).norm())
        assert change.rank == 1
        assert lost == pytest.approx(float(values[1:].norm()), rel=1e-5)
        assert change.error == pytest.approx(lost / float(values.norm()), rel=1e-5)


def test_a_larger_rank_or_all_of_the_energy_loses_nothing(tmp_path):
    head = {"head.weight": numbers(2, 3, seed=4)}
    delta = write_lora(tmp_path / "a", 1, trained=head)
    for name, options in (("rank", {"rank": 64}), ("energy", {"energy": 1.0})):
        same = resize(delta, tmp_path / name, **options)
        assert {change.rank for change in same.changes} == {2}
        for module, update in updates_of(same.folder).items():
            assert torch.allclose(update, updates_of(delta)[module], atol=1e-6)
        assert torch.equal(tensors_in(same.folder)["head.weight"], head["head.weight"])
        assert config_of(same.folder)["backbone_hash"] == config_of(delta)["backbone_hash"]


def test_a_lora_of_peft_becomes_a_delta(tmp_path):
    own, adapter = write_lora(tmp_path / "a", 1), write_peft(tmp_path / "p", 1)
    for module, update in updates_of(resize(adapter, tmp_path / "b", rank=2).folder).items():
        assert torch.allclose(update, updates_of(own)[module], atol=1e-6)


def test_resize_needs_a_size_and_a_lora(tmp_path):
    delta = write_lora(tmp_path / "a", 1)
    with pytest.raises(ConfigError, match="takes a rank"):
        resize(delta, tmp_path / "b")
    with pytest.raises(ConfigError, match="is a DoRA"):
        resize(write_lora(tmp_path / "dora", 1, use_dora=True), tmp_path / "b", rank=1)
    bias = {"block.query.deltas.bias": numbers(5, seed=1)}
    with pytest.raises(ConfigError, match="which has no rank"):
        resize(write(tmp_path / "bias", {"delta_type": "bitfit"}, bias, RECORD), tmp_path / "b", rank=1)
    with pytest.raises(CheckpointError, match="holds a delta"):
        resize(delta, delta, rank=1)


@pytest.mark.parametrize("factor", [0.5, -2])
def test_a_scaled_lora_keeps_its_tensors(tmp_path, factor):
    delta = write_lora(tmp_path / "a", 1, use_rslora=True, ranks={"block.value": 3}, alpha_pattern={"block.query": 7})
    scaled = scale(delta, factor, tmp_path / "b").folder

    assert all(torch.equal(tensor, tensors_in(delta)[name]) for name, tensor in tensors_in(scaled).items())
    for module, update in updates_of(scaled).items():
        assert torch.allclose(update, factor * updates_of(delta)[module])


@pytest.mark.parametrize(
    ("kind", "key", "neutral"), [("bitfit", "bias", 0), ("layer_norm", "weight", 0), ("ia3", "ia3_l", 1)]
)
def test_offsets_and_factors_are_scaled_by_their_difference_to_no_change(tmp_path, kind, key, neutral):
    values = {f"block.query.deltas.{key}": numbers(5, seed=1)}
    delta = write(tmp_path / "a", {"delta_type": kind, "modified_modules": ["block.query"]}, values, RECORD)
    (actual,) = tensors_in(scale(delta, 3, tmp_path / "b").folder).values()
    (before,) = values.values()

    assert torch.allclose(actual, neutral + 3 * (before - neutral))


def test_a_scaled_delta_acts_that_much_on_its_backbone(tmp_path):
    base = bert()
    delta = LoraModel(base, modified_modules=["classifier"])
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "a")
    whole = logits_of(base)
    delta.detach()
    plain = logits_of(base)
    scale(tmp_path / "a", 0.25, tmp_path / "b")
    other = bert()
    AutoDeltaModel.from_finetuned(tmp_path / "b", backbone_model=other)

    assert torch.allclose(logits_of(other), plain + 0.25 * (whole - plain), atol=1e-5)


def test_what_cannot_be_scaled_is_refused_with_the_reason(tmp_path):
    delta = write_lora(tmp_path / "a", 1, trained={"head.weight": numbers(2, 3, seed=4)})
    for factor in (0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="finite number other than zero"):
            scale(delta, factor, tmp_path / "b")
    with pytest.raises(ConfigError, match=r"cannot be scaled without the backbone's.*--heads first"):
        scale(delta, 2, tmp_path / "b")
    assert scale(delta, 2, tmp_path / "b", heads="first").trained == ("head.weight",)
    prompt = {"deltas.soft_embeds": numbers(3, 4, seed=1)}
    prompts = write(tmp_path / "p", {"delta_type": "soft_prompt", "soft_token_num": 3}, prompt, RECORD)
    with pytest.raises(ConfigError, match="a soft_prompt has no strength"):
        scale(prompts, 2, tmp_path / "c")
    with pytest.raises(ConfigError, match="comes from the package acme-deltas"):
        scale(
            write(tmp_path / "q", {"delta_type": "gate", "delta_package": "acme-deltas"}, prompt, RECORD),
            2,
            tmp_path / "c",
        )


KINDS = {
    "adalora": {"delta_type": "adalora", "init_r": 3, "target_r": 2},
    "vera": {"delta_type": "vera", "r": 3},
    "adapter": {"delta_type": "adapter", "bottleneck_dim": 2},
    "dora": {"delta_type": "lora", "use_dora": True},
    "loha": {"delta_type": "weight_update", "method": "loha"},
    "lora with a bias": {"delta_type": "lora", "use_bias": True},
    "union": {"delta_type": "union", "parts": [{"delta_type": "lora"}, {"delta_type": "adapter"}]},
    "compacter": {"delta_type": "compacter", "reduction_factor": 4, "hypercomplex_division": 2},
    "prefix": {"delta_type": "prefix"},
    "reft": {"delta_type": "reft"},
    "union with a prefix": {"delta_type": "union", "parts": [{"delta_type": "lora"}, {"delta_type": "prefix"}]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_of_any_type_is_scaled_as_on_a_backbone_and_refused_where_it_has_no_strength_there(kind, tmp_path):
    backbone, scaled_backbone = bert(), bert()
    delta = AutoDeltaModel.from_config(KINDS[kind], backbone)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "a")
    try:
        delta.scale(-0.5)
    except ConfigError:
        with pytest.raises(ConfigError, match="has no strength"):
            scale(tmp_path / "a", -0.5, tmp_path / "b")
        return
    scale(tmp_path / "a", -0.25, tmp_path / "b")
    scale(tmp_path / "b", 2, tmp_path / "c")
    AutoDeltaModel.from_finetuned(tmp_path / "c", scaled_backbone)
    torch.testing.assert_close(logits_of(scaled_backbone), logits_of(backbone))
    assert verify_lineage(tmp_path / "c", [tmp_path / "b"]).status == "same bytes"
