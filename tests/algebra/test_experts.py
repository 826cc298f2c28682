"""LoRAs on stacks of experts and other parameters are computed with as batches of matrices."""

import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel, combine, diff, resize, scale, verify_lineage
from deltahub.errors import CheckpointError, ConfigError
from tests.algebra.making import RECORD, config_of, numbers, tensors_in, write
from tests.backbones import stir
from tests.deltas.test_lora_parameters import mixture, out

STACK = "mlp.experts.deltas.down_proj"


def write_experts(folder, seed, *, experts=3, rank=2, stem=STACK, shared=False, **options):
    """A LoRA on a stack with random factors."""
    sizes = () if shared else (experts,)
    tensors = {
        f"{stem}.lora_A": numbers(*sizes, rank, 4, seed=seed),
        f"{stem}.lora_B": numbers(*sizes, 5, rank, seed=seed + 50),
    }
    options = {"lora_r": rank, "lora_alpha": 3, **({"share_experts": True} if shared else {}), **options}
    targets = {"delta_type": "lora", "modified_modules": ["experts.down_proj"]}
    return write(folder, {**targets, **options}, tensors, RECORD)


def stack_of(folder):
    """The updates of the experts, by the formula of the config."""
    config, tensors = config_of(folder), tensors_in(folder)
    rank = config.get("rank_pattern", {}).get("mlp.experts.down_proj", config["lora_r"])
    alpha = config.get("alpha_pattern", {}).get("mlp.experts.down_proj", config["lora_alpha"])
    return alpha / rank * tensors[f"{STACK}.lora_B"].double() @ tensors[f"{STACK}.lora_A"].double()


@pytest.mark.parametrize("shared", [False, True])
def test_each_expert_has_the_weighted_sum_of_its_updates(shared, tmp_path):
    pair = [write_experts(tmp_path / "a", 1, shared=shared), write_experts(tmp_path / "b", 2, rank=1, shared=shared)]
    expected = 0.75 * stack_of(pair[0]) - 0.5 * stack_of(pair[1])
    for method in ("linear", "cat"):
        both = combine(pair, tmp_path / method, method=method, weights=[0.75, -0.5])
        torch.testing.assert_close(stack_of(both.folder), expected, atol=1e-6, rtol=1e-6)
        assert [(change.module, change.rank) for change in both.changes] == [("mlp.experts.down_proj", 3)]
        assert verify_lineage(both.folder, pair).status == "same bytes"
    torch.testing.assert_close(stack_of(scale(pair[0], -2, tmp_path / "s").folder), -2 * stack_of(pair[0]))
    small = stack_of(resize(pair[0], tmp_path / "r", rank=1).folder)
    for update, best in zip(stack_of(pair[0]).view(-1, 5, 4), small.view(-1, 5, 4), strict=True):
        u, values, vt = torch.linalg.svd(update)
        torch.testing.assert_close(best, values[0] * u[:, :1] @ vt[:1], atol=1e-5, rtol=1e-5)


def test_stacks_are_compared_as_batches_of_matrices(tmp_path):
    pair = [write_experts(tmp_path / "a", 1), write_experts(tmp_path / "b", 2, rank=1)]
    first, second = map(stack_of, pair)
    (change,) = diff(*pair).updates
    assert change.name == "mlp.experts.down_proj"
    assert change.ranks == (2, 1)
    assert change.norms == pytest.approx((float(first.norm()), float(second.norm())))
    assert change.cosine == pytest.approx(float((first * second).sum() / (first.norm() * second.norm())))
    assert change.difference == pytest.approx(float((second - first).norm() / first.norm()))
    assert diff(pair[0], pair[0]).same
    assert diff(pair[0], write_experts(tmp_path / "c", 1, experts=4)).only_first == ("mlp.experts.down_proj",)


def test_stacks_that_do_not_match_are_not_combined(tmp_path):
    delta = write_experts(tmp_path / "a", 1)
    with pytest.raises(CheckpointError, match=r"different numbers of experts \(.*a: 3, .*b: 4\)"):
        combine([delta, write_experts(tmp_path / "b", 2, experts=4)], tmp_path / "x")
    with pytest.raises(ConfigError, match=r"The experts share one update in .*c, and each has its own in .*a"):
        combine([delta, write_experts(tmp_path / "c", 2, shared=True)], tmp_path / "x")
    broken = write_experts(tmp_path / "d", 2, lora_r=1)
    with pytest.raises(CheckpointError, match=r"are \[3, 5, 2\] and \[3, 2, 4\]; its config says rank 1"):
        combine([delta, broken], tmp_path / "x")


def test_a_combination_acts_on_its_mixture(tmp_path):
    model, addresses = mixture("Mixtral"), ["experts.w1", "experts.w2", "router", "q_proj"]
    ranks = {r"[r]experts\.gate_up_proj": 3}
    bare, parts = out(model), []
    for seed, modules in enumerate([addresses, addresses[:3]]):
        delta = LoraModel(model, lora_r=2, modified_modules=modules, rank_pattern=ranks)
        delta.freeze_module()
        stir(delta, seed)
        delta.save_finetuned(tmp_path / str(seed))
        delta.detach()
        parts.append(delta)
    with pytest.raises(ConfigError, match="act on parts of fused layers and address them"):
        combine([tmp_path / "0", write_experts(tmp_path / "c", 1)], tmp_path / "x", check_hash=False)
    combine([tmp_path / "0", tmp_path / "1"], tmp_path / "both", weights=[1, 1])
    both = AutoDeltaModel.from_finetuned(tmp_path / "both", model)
    found = out(model)
    both.detach()
    for delta in parts:
        delta.attach()
    assert not torch.allclose(found, bare, atol=1e-3)
    torch.testing.assert_close(found, out(model), atol=1e-4, rtol=1e-4)
