"""generate(): with and without a cache of keys and values, the words are the same, and they are the delta's."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from deltahub import AutoDeltaModel
from tests.backbones import gpt2, llama, original, stir, t5
from tests.grids import pairs
from tests.training.matrix import KINDS, put_on

pytestmark = pytest.mark.slow  # every delta type writes text


def bart(seed: int = 0) -> nn.Module:
    """BART: an encoder-decoder with learned positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return original("bart", init_std=0.3)


def t5_with_a_start(seed: int = 0) -> nn.Module:
    """T5, told what a sentence begins with."""
    return t5(seed, decoder_start_token_id=0)


DECODERS = {"bart": bart, "gpt2": gpt2, "llama": llama, "t5": t5_with_a_start}
LONGER = ("prefix", "plain_prefix", "soft_prompt")  # with these a cache holds more, or other positions
CASES = [*itertools.product(LONGER, DECODERS), *pairs([kind for kind in KINDS if kind not in LONGER], list(DECODERS))]
PROMPT = torch.tensor([[5, 6, 7], [8, 9, 10]])


def written(backbone: nn.Module, *, use_cache: bool) -> Tensor:
    """The scores of the next four words, greedily, ``(rows, 4, vocabulary)``."""
    with torch.no_grad():
        result = backbone.generate(
            input_ids=PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            do_sample=False,
            num_beams=1,
            min_new_tokens=4,
            max_new_tokens=4,
            use_cache=use_cache,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(result.logits, 1)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_delta_writes_the_same_with_a_cache_and_when_it_is_loaded(kind, name, tmp_path):
    backbone, fresh = DECODERS[name](), DECODERS[name]()
    bare = written(backbone, use_cache=True)
    delta = put_on(backbone, kind)
    stir(delta)
    delta.save_finetuned(tmp_path)
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)

    expected, cached = written(backbone, use_cache=False), written(backbone, use_cache=True)
    assert not torch.allclose(bare, expected, atol=1e-3)  # a hundred times what is equal below
    assert torch.allclose(expected, cached, atol=1e-5)
    assert torch.equal(cached, written(fresh, use_cache=True))
