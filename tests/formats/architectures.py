"""Tiny random backbones of more architectures, for what only the formats of others ask for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.backbones import _make as make

_SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_BART: dict[str, Any] = {
    **{f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
       {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()},
    "vocab_size": 50, "d_model": 16, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip


def roberta() -> nn.Module:
    """RoBERTa, whose classifier has two layers."""
    sizes = {**_SIZES, "intermediate_size": 24, "max_position_embeddings": 16, "type_vocab_size": 1}
    return make("RobertaForSequenceClassification", **sizes, num_labels=3, pad_token_id=1)


def distilbert() -> nn.Module:
    """DistilBERT with a classifier, and a pre_classifier whose name ends in the same way."""
    sizes = {"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 12}
    return make("DistilBertForSequenceClassification", **sizes, num_labels=3)


def square_gpt2() -> nn.Module:
    """GPT-2 with as many positions as its hidden state is wide."""
    return make("GPT2LMHeadModel", vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=0)


def bart() -> nn.Module:
    """BART: two embeddings and a head that share one weight."""
    return make("BartForConditionalGeneration", **_BART, max_position_embeddings=12, forced_eos_token_id=None)


def gemma() -> nn.Module:
    """Gemma, whose embedding multiplies its rows by a number and shares its weight with the head."""
    sizes = {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 12}
    return make("Gemma3ForCausalLM", **sizes, sliding_window=4)


def opt() -> nn.Module:
    """OPT: a feed-forward of two layers that are not in a module of their own."""
    return make(
        "OPTForCausalLM", **_SIZES, ffn_dim=24, max_position_embeddings=12, word_embed_proj_dim=16, pad_token_id=1
    )


def whisper() -> nn.Module:
    """Whisper, which listens and takes no input_ids."""
    return make(
        "WhisperForConditionalGeneration", **_BART, num_mel_bins=4, max_source_positions=8, max_target_positions=12
    )


def neox() -> nn.Module:
    """GPT-NeoX: q, k and v of each head in turn in one layer."""
    sizes = {**_SIZES, "intermediate_size": 24, "max_position_embeddings": 12}
    return make("GPTNeoXForCausalLM", **sizes, bos_token_id=0, eos_token_id=0)


def mamba() -> nn.Module:
    """Mamba: no attention."""
    return make("MambaForCausalLM", vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)


class Numbered(nn.Sequential):
    """Layers that have numbers for names, one of them the end of another's."""

    main_input_name = "x"

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6))
        self.tail = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def numbered() -> nn.Module:
    """A model that is none of transformers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Numbered().eval()


def logits_of(model: nn.Module, kind: str) -> Tensor:
    """The outputs of one of these on a batch of two."""
    draw = torch.Generator().manual_seed(1)
    if kind == "numbered":
        inputs: dict[str, Tensor] = {"input": torch.randn(2, 4, generator=draw)}
    elif kind == "vit":
        inputs = {"pixel_values": torch.randn(2, 3, 8, 8, generator=draw)}
    elif kind == "whisper":
        inputs = {"input_features": torch.randn(2, 4, 16, generator=draw)}
    else:
        inputs = {"input_ids": torch.randint(3, 50, (2, 7), generator=draw)}
    if kind in ("t5", "bart", "whisper"):
        inputs["decoder_input_ids"] = torch.randint(3, 50, (2, 4), generator=draw)
    with torch.no_grad():
        output = model(**inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits
