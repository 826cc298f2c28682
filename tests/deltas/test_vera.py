"""VeRA trains two vectors of each module; the matrices are shared, frozen, and saved with the delta."""

import pytest
import torch

from deltahub import AutoDeltaModel, VeraModel
from deltahub.errors import TargetError
from tests.backbones import bert, gpt2, logits_of, stir

WIDE = ["attn.q", "ff.w2"]  # of other widths: 16 x 16 and 24 x 16


def test_every_module_takes_its_share_of_the_same_matrices(tmp_path):
    backbone = bert()
    delta = VeraModel(backbone, r=3, projection_prng_key=5, modified_modules=WIDE)
    stir(delta)
    x = torch.randn(2, 24)
    first, second = list(delta.insertions.values())[:2]
    layer = backbone.bert.encoder.layer[0].output.dense
    with torch.no_grad():
        low = second.vera_lambda_d * (x @ first.vera_A.T)
        expected = second.vera_lambda_b * (low @ first.vera_B[:16].T)
        torch.testing.assert_close(layer(x) - torch.nn.functional.linear(x, layer.weight, layer.bias), expected)
    delta.save_finetuned(tmp_path / "delta")

    assert sum(name.endswith(("vera_A", "vera_B")) for name in delta.state_dict()) == 2
    assert (first.vera_A.shape, first.vera_B.shape) == ((3, 24), (16, 3))
    again = bert()
    loaded = AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=again, projection_prng_key=6)
    assert torch.equal(logits_of(again), logits_of(backbone))  # the matrices are those of the file
    loaded.detach()
    assert torch.equal(logits_of(again), logits_of(bert()))


def test_the_seed_gives_the_matrices_and_parts_of_fused_layers_share_them():
    one, same, other = (VeraModel(gpt2(), r=3, projection_prng_key=seed) for seed in (1, 1, 2))
    down, again, different = (
        next(tensor for name, tensor in delta.state_dict().items() if name.endswith("vera_A"))
        for delta in (one, same, other)
    )
    assert torch.equal(down, again)
    assert not torch.equal(down, different)
    assert sum(name.endswith("vera_A") for name in one.state_dict()) == 1


def test_it_becomes_a_lora_of_its_rank_without_error():
    backbone = bert()
    delta = VeraModel(backbone, r=3, modified_modules=WIDE)
    stir(delta)
    expected = logits_of(backbone)
    assert delta.as_lora(rank=3).max_error < 1e-5
    torch.testing.assert_close(logits_of(backbone), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TargetError, match="it is an Embedding"):
        VeraModel(bert(), modified_modules=["word_embeddings"])
