"""Where `adapters` puts its modules in the model families whose places are known here, by transformers' names.

A bottleneck belongs to a branch of a layer: attention or feed-forward, whose output is added to a residual.

    post-norm   y = LN(h + x)      h = branch(x)             BERT
    pre-norm    y = h + x          h = branch(norm(x))       GPT-2, LLaMA, T5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Place:
    """One place of a bottleneck in every layer; in each name `*` is the number of the layer, and the base model comes before.

    Attributes:
        flag: the field of the config that puts a bottleneck here.
        holder: the module of `adapters` that holds it.
        output: the layer with the last output of the branch, h.
        total: the module that gets h + x as its input, a LayerNorm, or with pre-norm returns it; empty where none does.
        start: the first module that reads x.
    """

    flag: str
    holder: str
    output: str
    total: str
    start: str


@dataclass(frozen=True)
class Family:
    """The places in one family of models.

    Attributes:
        post_norm: whether the LayerNorm comes after the residual sum.
        places: the places of bottlenecks.
        attentions: the attentions of a layer where a prefix is, by the name there of the group of prefixes.
        relative_positions: whether the attention has a bias for relative positions.
        embeddings: the module that returns the first hidden state, where an invertible adapter is.
    """

    post_norm: bool
    places: tuple[Place, ...]
    attentions: Mapping[str, str] = field(default_factory=dict)
    relative_positions: bool = False
    embeddings: str = ""


def _bert() -> Family:
    layer = "encoder.layer.*"
    attention = f"{layer}.attention"
    return Family(
        True,
        (
            Place(
                "mh_adapter",
                f"{attention}.output",
                f"{attention}.output.dense",
                f"{attention}.output.LayerNorm",
                f"{attention}.self.query",
            ),
            Place(
                "output_adapter",
                f"{layer}.output",
                f"{layer}.output.dense",
                f"{layer}.output.LayerNorm",
                f"{layer}.intermediate.dense",
            ),
        ),
        {"self_prefix": f"{attention}.self"},
        embeddings="embeddings",
    )


def _two_modules(
    layer: str,
    attention: tuple[str, str, str],
    feed_forward: tuple[str, str, str],
    core: str,
    embeddings: str,
    *,
    post_norm: bool,
    group: str = "self_prefix",
) -> Family:
    """Return a family whose layers hold the bottlenecks in modules of their own.

    Args:
        attention: output, total and start within the layer; ``"."`` is the layer itself.
        feed_forward: the same.
        core: the attention within the layer.
        embeddings: the module that returns the first hidden state.
        post_norm: see `Family`.
        group: what the prefixes of self-attention are called.
    """

    def place(flag: str, holder: str, names: tuple[str, str, str]) -> Place:
        output, total, start = (layer if name == "." else name and f"{layer}.{name}" for name in names)
        return Place(flag, f"{layer}.{holder}", output, total, start)

    places = (
        place("mh_adapter", "attention_adapters", attention),
        place("output_adapter", "output_adapters", feed_forward),
    )
    return Family(post_norm, places, {group: f"{layer}.{core}"}, embeddings=embeddings)


def _t5() -> Family:
    def place(flag: str, stack: str, number: int, output: str) -> Place:
        layer = f"{stack}.block.*.layer.{number}"
        return Place(flag, layer, f"{layer}.{output}", layer, f"{layer}.layer_norm")

    attention, crossed, feed_forward = "SelfAttention.o", "EncDecAttention.o", "DenseReluDense.wo"
    return Family(
        False,
        (
            place("mh_adapter", "encoder", 0, attention),
            place("output_adapter", "encoder", 1, feed_forward),
            place("mh_adapter", "decoder", 0, attention),
            place("cross_adapter", "decoder", 1, crossed),
            place("output_adapter", "decoder", 2, feed_forward),
        ),
        {
            "encoder_prefix": "encoder.block.*.layer.0.SelfAttention",
            "self_prefix": "decoder.block.*.layer.0.SelfAttention",
            "cross_prefix": "decoder.block.*.layer.1.EncDecAttention",
        },
        relative_positions=True,
        embeddings="encoder.embed_tokens",
    )


_BERT: Final = _bert()
_LLAMA: Final = _two_modules(
    "layers.*",
    ("self_attn.o_proj", "", "input_layernorm"),
    ("mlp.down_proj", ".", "post_attention_layernorm"),
    "self_attn",
    "embed_tokens",
    post_norm=False,
)
FAMILIES: Final[Mapping[str, Family]] = {
    "bert": _BERT,
    "distilbert": _two_modules(
        "transformer.layer.*",
        ("attention.out_lin", "sa_layer_norm", "attention.q_lin"),
        ("ffn.lin2", "output_layer_norm", "ffn.lin1"),
        "attention",
        "embeddings",
        post_norm=True,
        group="self",
    ),
    "electra": _BERT,
    "gpt2": _two_modules(
        "h.*", ("attn.c_proj", "", "ln_1"), ("mlp.c_proj", ".", "ln_2"), "attn", "drop", post_norm=False
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mt5": _t5(),
    "roberta": _BERT,
    "t5": _t5(),
    "xlm-roberta": _BERT,
}
