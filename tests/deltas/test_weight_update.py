"""Each method of updating weights starts as the identity, moves, merges, and is saved and loaded like any other delta."""

from __future__ import annotations

import pytest
import torch

from deltahub import AdapterModel, AutoDeltaModel, BitFitModel, WeightUpdateModel, route
from deltahub.deltas.updates.update import METHODS
from deltahub.errors import ConfigError, MergeError, NoMatchError, TargetError
from tests.backbones import bert, gpt2, logits_of, stir, vit

# Options, and the number of parameters on q, proj and w2 of two layers of width 16 and feed-forward width 24.
SMALL = {
    "boft": ({"block_size": 4}, 2 * (2 * (16 * 4 + 16) + 24 * 4 + 16)),
    "c3a": ({"block_size": 8}, 2 * (16 * 16 * 2 + 24 * 16) // 8),
    "dense": ({}, 2 * (16 * 16 * 2 + 24 * 16)),
    "fourierft": ({"places": 20}, 6 * 20),
    "hira": ({"r": 2}, 2 * (2 * 2 * 32 + 2 * 40)),
    "hra": ({"r": 4}, 2 * 4 * (16 + 16 + 24)),
    "loha": ({"r": 2}, 2 * 2 * (2 * 2 * 32 + 2 * 40)),
    "lokr": ({"r": 1}, 2 * (2 * (4 * 4 + 4 + 4) + 4 * 4 + 4 + 6)),
    "oft": ({"block_size": 4}, 2 * (4 + 4 + 6) * 6),
    "road": ({"group_size": 4}, 6 * 16),
    "sparse": ({"places": 20}, 6 * 20),
    "waveft": ({"places": 20}, 6 * 20),
}
WHERE = ["attn.q", "attn.proj", "ff.w2"]


def test_the_table_knows_every_method():
    assert SMALL.keys() == METHODS.keys()


@pytest.mark.parametrize("method", SMALL)
def test_a_method_starts_as_the_identity_and_can_be_merged_saved_and_loaded(method, tmp_path):
    options, count = SMALL[method]
    backbone = bert()
    before = logits_of(backbone)
    delta = WeightUpdateModel(backbone, method, options, WHERE)
    torch.testing.assert_close(logits_of(backbone), before, rtol=0, atol=1e-6)
    assert sum(parameter.numel() for parameter in delta.parameters()) == count

    delta.freeze_module()
    stir(delta)
    moved = logits_of(backbone)
    assert (moved - before).abs().max() > 1e-3
    delta.save_finetuned(tmp_path / "saved")
    again = bert()
    AutoDeltaModel.from_finetuned(tmp_path / "saved", backbone_model=again)
    assert torch.equal(logits_of(again), moved)

    delta.merge()
    torch.testing.assert_close(logits_of(backbone), moved, rtol=1e-5, atol=1e-5)
    delta.unmerge()
    delta.detach()
    assert torch.equal(logits_of(backbone), before)


@pytest.mark.parametrize("method", ["loha", "oft"])
def test_it_acts_on_a_part_of_a_fused_layer_as_on_a_layer_of_its_own(method):
    backbone = gpt2()
    delta = WeightUpdateModel(backbone, method, SMALL[method][0], ["attn.q"])
    stir(delta)
    moved = logits_of(backbone)
    weight = backbone.transformer.h[0].attn.c_attn.weight.detach().clone()
    delta.merge()
    merged = backbone.transformer.h[0].attn.c_attn.weight

    torch.testing.assert_close(logits_of(backbone), moved)
    assert torch.equal(merged[:, 16:], weight[:, 16:])
    assert not torch.equal(merged[:, :16], weight[:, :16])


@pytest.mark.parametrize("method", ["loha", "hra", "lokr"])
def test_a_convolution_is_a_linear_layer_of_patches(method):
    backbone = vit()
    delta = WeightUpdateModel(backbone, method, SMALL[method][0], ["projection"])
    stir(delta)
    moved = logits_of(backbone)
    delta.merge()

    torch.testing.assert_close(logits_of(backbone), moved)


def test_rows_of_a_batch_go_through_updates_of_their_own():
    backbone = bert()
    deltas = [WeightUpdateModel(backbone, method, SMALL[method][0], WHERE, name=method) for method in ("loha", "hira")]
    expected = []
    for delta in deltas:
        stir(delta)
        delta.detach()
    for row, delta in enumerate(deltas):
        delta.attach()
        expected.append(logits_of(backbone)[row])
        delta.detach()
    for delta in deltas:
        delta.attach()
    with route(backbone, ["loha", "hira"]):
        torch.testing.assert_close(logits_of(backbone), torch.stack(expected))


def test_single_modules_have_options_of_their_own():
    backbone = bert()
    delta = WeightUpdateModel(
        backbone, "loha", {"r": 2}, ["query"], options_pattern={"bert.encoder.layer.1.attention.self.query": {"r": 3}}
    )
    assert [insertion.hada_w1_a.shape[1] for insertion in delta.insertions.values()] == [2, 3]
    with pytest.raises(NoMatchError, match="options_pattern"):
        WeightUpdateModel(bert(), "loha", {}, ["query"], options_pattern={"nowhere": {"r": 3}})


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("loah", {}, "not a method .*loha"),
        ("loha", {"rank": 2}, "loha has no option 'rank'"),
        ("loha", {"r": 0}, "r of loha must be at least 1, got 0"),
        ("loha", {"r": 2.5}, "r of loha must be of type int"),
        ("loha", {"tucker": 1}, "tucker of loha must be of type bool"),
        ("oft", {"block_size": 5}, "16 cannot be divided into blocks of 5"),
        ("sparse", {"places": 1000}, "1000 places are more than the 256 entries"),
    ],
)
def test_options_that_cannot_work_are_refused(method, options, match):
    with pytest.raises(ConfigError, match=match):
        WeightUpdateModel(bert(), method, options)


def test_layers_that_it_cannot_act_on_are_refused():
    with pytest.raises(TargetError, match="it is an Embedding"):
        WeightUpdateModel(bert(), "loha", {}, ["word_embeddings"])
    backbone = bert()
    delta = WeightUpdateModel(backbone, "road", {"group_size": 4}, ["query"])
    backbone.bert.encoder.layer[0].attention.self.query.bias = None
    stir(delta)
    delta.merge()  # a rotation of no bias is none
    with pytest.raises(MergeError):
        delta.merge()


@pytest.mark.parametrize("method", SMALL)
def test_an_update_becomes_a_lora_of_full_rank_exactly_and_of_a_lower_one_with_the_error_it_says(method):
    backbone = bert()
    delta = WeightUpdateModel(backbone, method, SMALL[method][0], WHERE)
    stir(delta)
    expected = logits_of(backbone)
    whole = delta.as_lora(rank=16)
    exact = logits_of(backbone)
    whole.delta.remove()
    delta.attach()
    rough = delta.as_lora(rank=1)

    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=1e-5)
    assert whole.max_error < 1e-5
    assert [change.rank for change in rough.changes] == [1] * 6
    assert rough.max_error > 1e-3
    assert not delta.attached


def test_a_trained_head_goes_with_the_lora_and_energy_sets_its_rank():
    backbone = bert()
    delta = WeightUpdateModel(backbone, "loha", {"r": 2}, WHERE)
    delta.freeze_module(exclude=["deltas", "classifier"])
    stir(delta)
    with torch.no_grad():
        backbone.classifier.weight.add_(1.0)
    expected = logits_of(backbone)
    conversion = delta.as_lora(energy=1 - 1e-12)

    torch.testing.assert_close(logits_of(backbone), expected, rtol=1e-4, atol=1e-5)
    assert all(change.rank <= 4 for change in conversion.changes)
    conversion.delta.detach()
    assert torch.equal(logits_of(backbone), logits_of(bert()))


def test_a_lora_needs_a_size_and_a_matrix():
    delta = WeightUpdateModel(bert(), "loha", {}, WHERE)
    with pytest.raises(ConfigError, match="needs a rank, or the energy"):
        delta.as_lora()
    with pytest.raises(ConfigError, match="changes no matrix there"):
        BitFitModel(bert(), ["query"]).as_lora(rank=1)
    with pytest.raises(ConfigError, match="cannot become a LoRA: the effect of"):
        AdapterModel(bert()).as_lora(rank=1)
