"""Combinations are those of the dense updates, in float64, or refused with the reason."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahub import AutoDeltaModel, LoraModel, combine
from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.checkpoint.checkpoint import read
from deltahub.checkpoint.quantised_weight import Quantisation, QuantisedWeight
from deltahub.errors import CheckpointError, ConfigError
from tests.algebra.making import (
    RECORD,
    SHAPES,
    config_of,
    numbers,
    tensors_in,
    updates_of,
    write,
    write_lora,
    write_peft,
)
from tests.backbones import bert, gpt2, logits_of, stir


@pytest.fixture
def pair(tmp_path):
    """Two LoRAs of different ranks, alphas and scalings."""
    first = write_lora(tmp_path / "a", 1, use_rslora=True)
    second = write_lora(tmp_path / "b", 2, lora_r=3, lora_alpha=-5.5, ranks={"block.value": 1})
    return first, second


def assert_close(actual, expected, tolerance=1e-6):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(
            actual[name], expected[name], rtol=0, atol=tolerance * max(1.0, float(expected[name].norm()))
        )


# ----- sums -----


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_sum_is_that_of_the_products_whatever_the_ranks_alphas_and_scalings(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("sum")
    count = data.draw(st.integers(2, 3))
    sizes = st.integers(1, 6)
    shapes = {f"m{number}": (data.draw(sizes), data.draw(sizes)) for number in range(2)}
    record = Fingerprint((Leaf("m0.weight", "float32", shapes["m0"], "0" * 32),))
    numbers_ = st.floats(-3, 3).filter(lambda value: abs(value) > 1e-2)
    deltas = [
        write_lora(
            folder / str(seed),
            seed,
            shapes=shapes,
            record=record,
            lora_r=data.draw(st.integers(1, 4)),
            lora_alpha=data.draw(numbers_),
            use_rslora=data.draw(st.booleans()),
            ranks={"m1": data.draw(st.integers(1, 4))},
            alpha_pattern={"m0": data.draw(numbers_)},
        )
        for seed in range(count)
    ]
    weights = [data.draw(numbers_) for _ in deltas]
    updates = [updates_of(delta) for delta in deltas]
    expected = {name: sum(w * u[name] for w, u in zip(weights, updates, strict=True)) for name in shapes}
    method = data.draw(st.sampled_from(["linear", "cat", "svd"]))
    rank = data.draw(st.integers(1, 4)) if method != "cat" else None
    result = combine(deltas, folder / "result", method=method, weights=weights, rank=rank)
    actual = updates_of(result.folder)

    for change in result.changes:
        whole = expected[change.module]
        values = torch.linalg.svdvals(whole)
        lost = float(values[rank:].norm()) if rank else 0.0
        assert float((actual[change.module] - whole).norm()) == pytest.approx(lost, abs=1e-5 * (1 + float(values[0])))
        assert change.error == pytest.approx(lost / float(values.norm()), abs=1e-6)
        assert change.rank <= (rank or math.inf)


def test_weights_are_equal_and_add_up_to_one_by_default(pair, tmp_path):
    first, second = map(updates_of, pair)
    result = combine(pair, tmp_path / "c")

    assert_close(updates_of(result.folder), {name: (first[name] + second[name]) / 2 for name in first})
    assert config_of(result.folder)["lineage"] == {
        "operation": "combine",
        "parameters": {"method": "linear", "weights": [0.5, 0.5]},
    }


def test_cat_keeps_the_factors_beside_each_other_and_linear_their_rank(pair, tmp_path):
    ranks = {c.module: c.rank for c in combine(pair, tmp_path / "cat", method="cat").changes}
    same = combine([pair[0], pair[0]], tmp_path / "same")

    assert ranks == {"block.query": 2 + 3, "block.value": 2 + 1}
    assert {change.rank for change in same.changes} == {2}
    assert_close(updates_of(same.folder), updates_of(pair[0]))


def test_an_energy_takes_the_smallest_rank_that_keeps_it(pair, tmp_path):
    for change in combine(pair, tmp_path / "c", energy=0.8).changes:
        assert 0 < change.error**2 <= 0.2
        assert change.rank < 5


def test_svd_has_the_largest_rank_of_the_deltas_unless_another_is_asked_for(pair, tmp_path):
    ranks = {c.module: c.rank for c in combine(pair, tmp_path / "c", method="svd").changes}
    assert ranks == {"block.query": 3, "block.value": 2}


def test_a_module_of_one_delta_counts_as_unchanged_in_the_other(tmp_path):
    first = write_lora(tmp_path / "a", 1, shapes={"block.query": (5, 4)})
    second = write_lora(tmp_path / "b", 2, shapes={"block.value": (3, 6)})
    result = combine([first, second], tmp_path / "c", weights=[2, -3])

    expected = {
        "block.query": 2 * updates_of(first)["block.query"],
        "block.value": -3 * updates_of(second)["block.value"],
    }
    assert_close(updates_of(result.folder), expected)
    assert config_of(result.folder)["modified_modules"] == ["block.query", "block.value"]


def test_half_precision_is_summed_in_float32(tmp_path):
    folder = write_lora(tmp_path / "a", 1)
    halves = {name: tensor.bfloat16() for name, tensor in tensors_in(folder).items()}
    half = write(tmp_path / "h", {k: v for k, v in config_of(folder).items() if k != "files"}, halves, RECORD)
    result = combine([half, half], tmp_path / "c", method="cat", weights=[0.3, 0.3])

    assert {tensor.dtype for tensor in tensors_in(result.folder).values()} == {torch.float32}
    assert_close(updates_of(result.folder), {name: 0.6 * update for name, update in updates_of(half).items()})


# ----- methods that are not sums -----


def angles(first, second):
    return {
        name: torch.acos(torch.cosine_similarity(first[name].flatten(), second[name].flatten(), 0)) for name in first
    }


def test_slerp_goes_along_the_arc_between_the_updates(pair, tmp_path):
    first, second = map(updates_of, pair)
    result = combine(pair, tmp_path / "c", method="slerp", weights=[1, 3])
    arc = angles(first, second)
    expected = {
        name: (torch.sin(0.25 * a) * first[name] + torch.sin(0.75 * a) * second[name]) / torch.sin(a)
        for name, a in arc.items()
    }

    assert_close(updates_of(result.folder), expected)
    ends = combine(pair, tmp_path / "end", method="slerp", weights=[1, 0])
    assert_close(updates_of(ends.folder), first)
    assert_close(updates_of(combine([pair[0]] * 2, tmp_path / "same", method="slerp").folder), first)


def ties(updates, weights, density):
    """TIES as its authors describe it: trim, elect a sign, average those that agree, value by value."""
    trimmed = []
    for update in updates:
        flat = update.flatten()
        kept = flat.abs().argsort(descending=True)[: math.ceil(density * len(flat))]
        trimmed.append(torch.zeros_like(flat).index_copy(0, kept, flat[kept]))
    result = torch.zeros_like(trimmed[0])
    for at in range(len(result)):
        values = [(weight, float(part[at])) for weight, part in zip(weights, trimmed, strict=True)]
        sign = math.copysign(1, sum(weight * value for weight, value in values))
        agreeing = [(weight, value) for weight, value in values if weight * value * sign > 0]
        if agreeing:
            result[at] = sum(w * v for w, v in agreeing) / sum(abs(w) for w, _ in agreeing)
    return result.view_as(updates[0])


@pytest.mark.parametrize(("weights", "density"), [(None, 0.2), ([2, 1], 0.5), ([1, -1], 1.0)])
def test_ties_is_that_of_its_authors_on_the_products(pair, tmp_path, weights, density):
    first, second = map(updates_of, pair)
    result = combine(pair, tmp_path / "c", method="ties", weights=weights, density=density, rank=9)

    assert_close(
        updates_of(result.folder),
        {name: ties([first[name], second[name]], weights or [1, 1], density) for name in first},
    )
    assert max(change.error for change in result.changes) < 1e-6


def test_ties_of_a_low_rank_tells_its_error(pair, tmp_path):
    first, second = map(updates_of, pair)
    result = combine(pair, tmp_path / "c", method="ties", rank=1)
    actual = updates_of(result.folder)
    for change in result.changes:
        whole = ties([first[change.module], second[change.module]], [1, 1], 0.2)
        assert change.error == pytest.approx(float((actual[change.module] - whole).norm() / whole.norm()), abs=1e-6)


def test_dare_drops_values_of_the_products_at_random_and_keeps_their_mean(tmp_path):
    shape = {"block.query": (60, 50)}
    record = Fingerprint((Leaf("block.query.weight", "float32", (60, 50), "1" * 32),))
    pair = [write_lora(tmp_path / str(seed), seed, shapes=shape, record=record) for seed in (1, 2)]
    updates = [updates_of(folder)["block.query"] for folder in pair]
    result = combine(pair, tmp_path / "c", method="dare", weights=[1, 0], density=0.25, rank=50)
    actual = updates_of(result.folder)["block.query"]
    kept = actual.abs() > 1e-4

    assert float(kept.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.allclose(actual[kept], 4 * updates[0][kept], atol=1e-4)
    other = combine(pair, tmp_path / "d", method="dare", weights=[0, 1], density=0.25, rank=50)
    assert not torch.equal(kept, updates_of(other.folder)["block.query"].abs() > 1e-4)


def test_the_seed_decides_what_dare_drops(pair, tmp_path):
    bytes_of = {
        name: (combine(pair, tmp_path / name, method="dare", seed=seed).folder / "delta.safetensors").read_bytes()
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    }
    assert bytes_of["one"] == bytes_of["again"] != bytes_of["other"]


# ----- on a backbone -----


def trained_lora(make, folder, seed, **options):
    backbone = make()
    delta = LoraModel(backbone, **options)
    delta.freeze_module()
    stir(delta, seed)
    delta.save_finetuned(folder)
    delta.merge()
    return weights_of(backbone)


def weights_of(backbone):
    return {name: value.detach().clone() for name, value in backbone.named_parameters() if ".deltas." not in name}


@pytest.mark.parametrize("make", [bert, gpt2])
def test_the_result_changes_the_backbone_by_the_weighted_changes(tmp_path, make):
    others = {} if make is gpt2 else {"modified_modules": ["query", "output.dense"], "lora_alpha": 3}
    first = trained_lora(make, tmp_path / "a", 1, lora_r=3)
    second = trained_lora(make, tmp_path / "b", 2, lora_r=2, use_rslora=True, **others)
    base = weights_of(make())
    combine([tmp_path / "a", tmp_path / "b"], tmp_path / "c", weights=[0.3, 0.9])
    backbone = make()
    delta = AutoDeltaModel.from_finetuned(tmp_path / "c", backbone_model=backbone)
    before = logits_of(backbone)
    delta.merge()
    merged = weights_of(backbone)

    for name in base:
        expected = base[name] + 0.3 * (first[name] - base[name]) + 0.9 * (second[name] - base[name])
        assert torch.allclose(merged[name], expected, atol=1e-5)
    assert torch.allclose(before, logits_of(backbone), atol=1e-4)


def test_parts_of_a_fused_layer_keep_one_rank_and_are_not_mixed_with_the_whole_layer(tmp_path):
    trained_lora(gpt2, tmp_path / "a", 1)
    trained_lora(gpt2, tmp_path / "b", 2, modified_modules=["c_attn"], common_structure=False)
    trained_lora(gpt2, tmp_path / "c", 3, modified_modules=["attn.k"])
    with pytest.raises(ConfigError, match="acts on a part of the fused layer"):
        combine([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    result = combine([tmp_path / "a", tmp_path / "c"], tmp_path / "out")

    AutoDeltaModel.from_finetuned(tmp_path / "out", backbone_model=gpt2())
    assert {c.module.rpartition(".")[2] for c in result.changes} == {"q", "k", "v"}


# ----- adapters of PEFT -----


def test_a_lora_of_peft_is_combined_as_it_is(tmp_path):
    own = write_lora(tmp_path / "own", 1)
    adapters = [write_peft(tmp_path / "p1", 1), write_peft(tmp_path / "p2", 2, use_rslora=True, rank_pattern={})]
    result = combine(adapters, tmp_path / "c", weights=[1, 0.5])
    first, second = updates_of(own), updates_of(write_lora(tmp_path / "own2", 2, use_rslora=True))
    config = config_of(result.folder)

    assert_close(updates_of(result.folder), {name: first[name] + 0.5 * second[name] for name in first})
    assert (config["backbone_hash"], config["backbone_checkpoint_name"]) == (None, "acme/backbone")
    assert [parent["format"] for parent in config["parents"]] == ["peft", "peft"]
    assert_close(updates_of(combine([own, adapters[0]], tmp_path / "d").folder), first)


def test_records_are_compared_beside_a_delta_without_one_and_their_loss_is_said(tmp_path, caplog):
    own, adapter = write_lora(tmp_path / "own", 1), write_peft(tmp_path / "p", 2)
    result = combine([own, adapter], tmp_path / "c")
    assert config_of(result.folder)["backbone_hash"] is None
    assert "has no record of its backbone, only its name was compared" in caplog.text

    other = write_peft(tmp_path / "q", 3)
    (other / "backbone.json").write_bytes(Fingerprint(RECORD.leaves[:1]).to_bytes())
    with pytest.raises(CheckpointError, match="different backbones"):
        combine([own, adapter, other], tmp_path / "d")


def test_a_recorded_backbone_of_an_adapter_counts_like_that_of_a_delta(tmp_path):
    own, adapter = write_lora(tmp_path / "own", 1), write_peft(tmp_path / "p", 2, base_model_name_or_path=None)
    (adapter / "backbone.json").write_bytes(RECORD.to_bytes())
    result = combine([own, adapter], tmp_path / "c")
    (adapter / "backbone.json").write_bytes(Fingerprint(RECORD.leaves[:1]).to_bytes())

    assert config_of(result.folder)["backbone_hash"] == RECORD.hash
    with pytest.raises(CheckpointError, match="different backbones"):
        combine([own, adapter], tmp_path / "d")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"base_model_name_or_path": "acme/other"}, "do not show that it is the same one"),
        ({"base_model_name_or_path": None}, "do not show that it is the same one"),
        ({"use_dora": True}, "is a DoRA"),
        ({"init_lora_weights": "pissa"}, "changed the weights of its backbone"),
        ({"peft_type": "IA3"}, "of type IA3"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"target_modules": ["query"]}, "target_modules in adapter_config.json does not name"),
        ({"r": 4}, "its config says rank 4"),
    ],
)
def test_a_lora_of_peft_that_cannot_be_summed_is_refused(tmp_path, changes, reason):
    adapters = [write_peft(tmp_path / "p1", 1), write_peft(tmp_path / "p2", 2, **changes)]
    with pytest.raises((CheckpointError, ConfigError), match=reason):
        combine(adapters, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_backbones_known_by_name_only_can_be_combined_on_the_callers_word(tmp_path):
    adapters = [write_peft(tmp_path / "p1", 1), write_peft(tmp_path / "p2", 2, base_model_name_or_path=None)]
    assert (
        config_of(combine(adapters, tmp_path / "c", check_hash=False).folder)["lineage"]["parameters"]["check_hash"]
        is False
    )


# ----- backbones and trained tensors -----


def test_deltas_of_different_backbones_are_refused(tmp_path):
    other = Fingerprint(
        (*RECORD.leaves[:1], Leaf("block.value.weight", "float32", (3, 6), "9" * 32), *RECORD.leaves[2:])
    )
    pair = write_lora(tmp_path / "a", 1), write_lora(tmp_path / "b", 2, record=other)
    with pytest.raises(
        CheckpointError, match=r"different backbones \(same structure, other weights\).*block.value.weight"
    ):
        combine(pair, tmp_path / "c")
    combine(pair, tmp_path / "c", check_hash=False)


def test_the_record_of_the_result_covers_all_that_it_does_not_replace(tmp_path):
    head = {"head.weight": numbers(2, 3, seed=7)}
    pair = write_lora(tmp_path / "a", 1, trained=head), write_lora(tmp_path / "b", 2)
    result = combine(pair, tmp_path / "c", heads="first")
    same = combine([pair[0], pair[0]], tmp_path / "same")

    without_head = Fingerprint(RECORD.leaves[:2]).hash
    assert config_of(result.folder)["backbone_hash"] == config_of(same.folder)["backbone_hash"] == without_head
    assert result.trained == ("head.weight",)
    assert torch.equal(tensors_in(result.folder)["head.weight"], head["head.weight"])


def test_heads_that_differ_need_a_rule(tmp_path):
    heads = [numbers(2, 3, seed=seed) for seed in (7, 8)]
    pair = [write_lora(tmp_path / str(n), n, trained={"head.weight": head}) for n, head in enumerate(heads)]
    with pytest.raises(ConfigError, match=r"hold different values of head.weight.*--heads first.*--heads average"):
        combine(pair, tmp_path / "c")
    first = combine(pair, tmp_path / "c", heads="first")
    mean = combine(pair, tmp_path / "d", heads="average", weights=[1, 3])

    assert torch.equal(tensors_in(first.folder)["head.weight"], heads[0])
    assert torch.allclose(tensors_in(mean.folder)["head.weight"], (heads[0] + 3 * heads[1]) / 4)


@pytest.mark.parametrize(
    ("second", "weights", "reason"),
    [
        (None, None, "does not hold it"),
        (torch.ones(3, 3), None, "its shapes differ"),
        (torch.ones(2, 3), [1, -1], "add up to zero"),
        (torch.ones(2, 3, dtype=torch.int64), None, "torch.float32|torch.int64"),
    ],
)
def test_a_head_without_a_mean_is_refused(tmp_path, second, weights, reason):
    trained = [{"head.weight": numbers(2, 3, seed=7)}, {} if second is None else {"head.weight": second}]
    pair = [write_lora(tmp_path / str(n), n, trained=head) for n, head in enumerate(trained)]
    with pytest.raises(ConfigError, match=f"has no average.*({reason})"):
        combine(pair, tmp_path / "c", heads="average", weights=weights)
    if second is None:
        with pytest.raises(ConfigError, match=r"did not\. Take it from the first that has it"):
            combine(pair, tmp_path / "c")


# ----- other methods -----


def write_vectors(folder, kind, seed, **options):
    names = {"bitfit": ["bias"], "layer_norm": ["weight", "bias"], "ia3": ["ia3_l"]}[kind]
    tensors = {f"block.query.deltas.{key}": numbers(5, seed=seed + at) for at, key in enumerate(names)}
    targets = {"modified_modules": ["block.query"], "common_structure": False, "exclude_modules": []}
    return write(folder, {"delta_type": kind, **targets, **options}, tensors, RECORD)


@pytest.mark.parametrize(("kind", "neutral"), [("bitfit", 0), ("layer_norm", 0), ("ia3", 1)])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_offsets_and_factors_are_combined_by_their_difference_to_no_change(tmp_path, kind, neutral, method):
    pair = [write_vectors(tmp_path / str(seed), kind, seed) for seed in (1, 11)]
    weights = [0.5, 2]
    actual = tensors_in(combine(pair, tmp_path / "c", method=method, weights=weights).folder)
    for name, tensor in actual.items():
        parts = [tensors_in(folder)[name].double() - neutral for folder in pair]
        if method == "slerp":
            angle = torch.acos(torch.cosine_similarity(*parts, 0))
            expected = (torch.sin(0.2 * angle) * parts[0] + torch.sin(0.8 * angle) * parts[1]) / torch.sin(angle)
        else:
            expected = ties(parts, weights, 0.2) if method == "ties" else 0.5 * parts[0] + 2 * parts[1]
        assert torch.allclose(tensor.double(), expected + neutral, atol=1e-6)


def write_adapter(folder, seed, kind="adapter", **options):
    shapes = {"down_proj.weight": (2, 5), "down_proj.bias": (2,), "up_proj.weight": (5, 2), "up_proj.bias": (5,)}
    tensors = {f"block.query.deltas.{key}": numbers(*shape, seed=seed) for key, shape in shapes.items()}
    targets = {
        "modified_modules": ["block.query"],
        "common_structure": False,
        "exclude_modules": [],
        "bottleneck_dim": 2,
    }
    return write(folder, {"delta_type": kind, **targets, **options}, tensors, RECORD)


def test_the_parameters_of_adapters_are_averaged(tmp_path):
    pair = [write_adapter(tmp_path / str(seed), seed) for seed in (1, 2)]
    actual = tensors_in(combine(pair, tmp_path / "c", weights=[0.25, 0.75]).folder)
    first, second = map(tensors_in, pair)

    for name, tensor in actual.items():
        assert torch.allclose(tensor, 0.25 * first[name] + 0.75 * second[name])


@pytest.mark.parametrize(
    ("makers", "options", "reason"),
    [
        ((write_adapter, write_adapter), {"weights": [1, 1]}, "must add up to 1"),
        ((write_adapter, write_adapter), {"method": "ties"}, "only the parameters can be averaged"),
        ((write_adapter, write_lora), {}, "act at different places"),
        (
            (write_adapter, lambda f, s: write_adapter(f, s, non_linearity="relu")),
            {},
            "different non_linearity",
        ),
        (
            (lambda f, s: write_vectors(f, "bitfit", s),) * 2,
            {"rank": 3},
            "are for low-rank updates",
        ),
        ((write_lora, lambda f, s: write_lora(f, s, shapes={"block.query": (4, 4)})), {}, "have different shapes"),
        ((write_lora, lambda f, s: write_lora(f, s, rank_pattern={"block.query": 3})), {}, "says rank 3"),
    ],
)
def test_a_combination_without_a_meaning_is_refused(tmp_path, makers, options, reason):
    pair = [make(tmp_path / str(seed), seed) for seed, make in enumerate(makers)]
    with pytest.raises((ConfigError, CheckpointError), match=reason):
        combine(pair, tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def test_soft_prompts_and_doras_are_refused_with_a_way_out(tmp_path):
    prompt = {"deltas.soft_embeds": numbers(3, 4, seed=1)}
    prompts = [
        write(tmp_path / name, {"delta_type": "soft_prompt", "soft_token_num": 3}, prompt, RECORD) for name in "pq"
    ]
    with pytest.raises(ConfigError, match="neither a sum nor a mean"):
        combine(prompts, tmp_path / "c")
    dora = write_lora(tmp_path / "dora", 1, use_dora=True)
    with pytest.raises(ConfigError, match=r"is a DoRA.*deltahub extract BASE MERGED"):
        combine([dora, dora], tmp_path / "c")
    biased = write_lora(tmp_path / "biased", 1, use_bias=True)
    with pytest.raises(ConfigError, match=r"with biases of B \(use_bias\), which cannot be combined"):
        combine([biased, biased], tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"method": "sum"}, "expected one of linear, cat, svd, slerp, ties, dare"),
        ({"method": "cat", "rank": 3}, "cat keeps the factors"),
        ({"weights": [1]}, "1 weights for 2 deltas"),
        ({"weights": [math.nan, 1]}, "expected finite numbers"),
        ({"weights": [0, 0]}, "not all zero"),
        ({"method": "slerp", "weights": [1, -1]}, "not negative"),
        ({"rank": 0}, "at least 1"),
        ({"rank": True}, "at least 1"),
        ({"energy": 1.5}, "at most 1"),
        ({"density": 0.5}, "linear has no density"),
        ({"method": "ties", "density": 0}, "more than 0"),
        ({"method": "dare", "seed": -1}, "seed is -1"),
        ({"heads": "last"}, "expected first or average"),
    ],
)
def test_an_option_that_cannot_work_is_refused_before_anything_is_read(tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        combine([tmp_path / "nowhere", tmp_path / "either"], tmp_path / "c", **options)


def test_one_delta_is_not_combined_and_slerp_takes_two(pair, tmp_path):
    for deltas in ([pair[0]], str(pair[0])):
        with pytest.raises(ConfigError, match="two deltas or more"):
            combine(deltas, tmp_path / "c")
    with pytest.raises(ConfigError, match="slerp is defined between two deltas"):
        combine([*pair, pair[0]], tmp_path / "c", method="slerp")


def test_a_value_that_is_not_finite_and_a_damaged_file_are_refused(pair, tmp_path):
    (pair[0] / "delta.safetensors").write_bytes(b"x" * 10)
    with pytest.raises(Exception, match="damaged"):
        combine(pair, tmp_path / "c")
    infinite = write_lora(tmp_path / "i", 1, trained={"head.weight": torch.full((2, 3), math.inf)})
    with pytest.raises(CheckpointError, match=r"head.weight of .* not finite"):
        combine([infinite, infinite], tmp_path / "c")


def test_a_folder_with_something_in_it_is_not_overwritten_unasked(pair, tmp_path):
    combine(pair, tmp_path / "c")
    with pytest.raises(CheckpointError, match="holds a delta"):
        combine(pair, tmp_path / "c")
    combine(pair, tmp_path / "c", force=True)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something other than a delta"):
        combine(pair, tmp_path / "d", force=True)
    assert SHAPES.keys() == updates_of(tmp_path / "c").keys()


def test_deltas_of_one_quantised_backbone_are_combined_and_those_of_its_dense_one_are_not(tmp_path):
    weight = Leaf("block.query.weight", "uint8", (10, 1), "4" * 32)
    kind = Quantisation("bitsandbytes nf4", 4, "float32", "{}", ("weight",))
    record = Fingerprint((weight, *RECORD.leaves[1:]), 3, (QuantisedWeight(weight.name, (5, 4), kind),))
    first, second = (write_lora(tmp_path / str(seed), seed, record=record) for seed in (1, 2))

    combine([first, second], to=tmp_path / "both")
    assert read(tmp_path / "both").fingerprint == record
    with pytest.raises(CheckpointError, match=r"different backbones \(other quantisation\)"):
        combine([first, write_lora(tmp_path / "dense", 3)], to=tmp_path / "mixed")
