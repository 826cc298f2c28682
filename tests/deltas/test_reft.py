"""ReFT changes the hidden states of the first and the last tokens, wherever padding and a cache put them."""

import pytest
import torch

from deltahub import AutoDeltaModel, ReftModel
from deltahub.errors import ConfigError, TargetError
from tests.backbones import bert, llama, stir, t5, untouched


def far(one, other):
    return (one - other).abs().max().item()


@pytest.mark.parametrize(
    "options", [{}, {"prefix_positions": 1, "suffix_positions": 2}, {"tied_weights": True, "suffix_positions": 1}]
)
def test_a_row_is_the_same_with_padding_on_either_side(options):
    backbone = bert()
    stir(ReftModel(backbone, **options))
    ids, pad = torch.tensor([[5, 6, 7, 8]]), torch.nn.functional.pad
    positions = {"right": torch.tensor([[0, 1, 2, 3, 0, 0, 0]]), "left": torch.tensor([[0, 0, 0, 0, 1, 2, 3]])}
    with torch.no_grad():
        alone = backbone.bert(ids).last_hidden_state
        for side, text in (("right", slice(0, 4)), ("left", slice(3, 7))):
            padded = pad(ids, (0, 3) if side == "right" else (3, 0))
            hidden = backbone.bert(
                padded, attention_mask=(padded > 0).long(), position_ids=positions[side]
            ).last_hidden_state
            assert far(alone, hidden[:, text]) < 1e-5


def test_only_the_chosen_tokens_change_and_each_within_its_subspace():
    backbone = bert()
    delta = ReftModel(backbone, r=2, prefix_positions=1, suffix_positions=2, modified_modules=["layer.1"])
    stir(delta)
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 1, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    with torch.no_grad():
        moved = backbone.bert(ids, attention_mask=mask).last_hidden_state
        delta.detach()
        change = moved - backbone.bert(ids, attention_mask=mask).last_hidden_state
    changed = change.abs().sum(-1) > 1e-5
    assert changed.tolist() == [[True, False, False, True, True], [True, True, False, False, False]]
    update = delta.insertions["bert.encoder.layer.1"]
    rows = update.suffix.rows(torch.float32)
    torch.testing.assert_close(rows @ rows.T, torch.eye(2))
    torch.testing.assert_close(change[0, 3:] @ rows.T @ rows, change[0, 3:])  # nothing outside of the rows of R


@pytest.mark.parametrize("make", [llama, t5])
def test_generation_is_the_same_with_and_without_a_cache(make):
    backbone = make()
    stir(ReftModel(backbone, prefix_positions=2))
    ids = torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    options = {
        "attention_mask": mask,
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
    texts = [backbone.generate(ids, use_cache=use_cache, **options) for use_cache in (True, False)]
    assert torch.equal(*texts)


def test_what_leaves_the_positions_unknown_is_refused():
    backbone = llama()
    delta = ReftModel(backbone, prefix_positions=0, suffix_positions=1)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(TargetError, match="while generate\\(\\) adds to it"):
        backbone.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    with pytest.raises(TargetError, match="by an attention_mask \\(batch, tokens\\)"):
        backbone(ids, attention_mask=torch.ones(1, 1, 3, 3))
    delta.remove()
    delta = ReftModel(backbone)
    with pytest.raises(TargetError, match="called outside of its model"):  # as some recompute a block
        delta.insertions["model.layers.0"].after(backbone, (), {}, torch.zeros(1, 3, 16))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"prefix_positions": 0}, "would never act"),
        ({"r": 17}, "r is 17, more than the width 16"),
        ({"prefix_positions": -1}, "prefix_positions must be"),
        ({"modified_modules": ["bert"]}, "is a whole model; ReFT acts on modules inside it"),
        ({"modified_modules": ["attn.q"], "non_linearity": "unheard"}, "unheard' is unknown"),
    ],
)
def test_options_that_cannot_work_are_refused(options, why):
    backbone = bert()
    with untouched(backbone), pytest.raises((ConfigError, TargetError), match=why):
        ReftModel(backbone, **options)


def test_direft_adds_what_the_source_says_and_subtracts_nothing(tmp_path):
    backbone = bert()
    delta = ReftModel(backbone, r=2, orthogonality=False, subtract_projection=False, non_linearity="relu")
    stir(delta)
    unit = delta.insertions["bert.encoder.layer.0"].prefix
    hidden = torch.randn(3, 16)
    expected = hidden + torch.relu(hidden @ unit.source.T + unit.bias) @ unit.projection
    torch.testing.assert_close(unit(hidden), expected)
    delta.save_finetuned(tmp_path)
    assert AutoDeltaModel.from_finetuned(tmp_path, backbone_model=bert()).config.subtract_projection is False
