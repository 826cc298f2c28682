"""Fused layers: the rows of a linear layer that are query, key and value, or gate and first matrix.

Every layout consists of groups, with the parts in turn in each group:

    GPT-2, in turn        groups=1      q q q q | k k k k | v v v v
    Phi-3, grouped query  groups=1      q q q q | k | v
    GPT-NeoX, by head     groups=heads  q k v | q k v | q k v | q k v
    Falcon 40B            groups=kv     q q k v | q q k v

The table holds classes whose forward was seen to split so; `tests/engine/test_inference.py` checks it against models. A
fused layer of any other class has a name only as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """A share of a fused module's output, e.g. the q rows of a q,k,v projection.

    The output, of width ``groups * of * unit``, is viewed as ``(..., groups, of, unit)``; the part is ``[..., start:stop, :]``.

    Attributes:
        label: its common name, e.g. ``"q"``.
        start: first unit of the part in each group.
        stop: the unit after its last.
        of: number of units in a group.
        groups: number of groups.
    """

    label: str
    start: int
    stop: int
    of: int
    groups: int = 1

    def width(self, whole: int) -> int:
        """Return how many of the layer's `whole` rows belong to the part."""
        return whole // self.of * (self.stop - self.start)

    def rows(self, whole: int) -> Tensor:
        """Return the numbers of these rows, in the order the model reads them."""
        view = torch.arange(whole).view(self.groups, self.of, -1)
        return view[:, self.start : self.stop].flatten()

    def read(self, output: Tensor) -> Tensor:
        """Return the part of an output with shape ``(..., whole)``."""
        return self._grouped(output)[..., self.start : self.stop, :].flatten(-3)

    def written(self, output: Tensor, share: Tensor) -> Tensor:
        """Return the output with this part replaced."""
        grouped = self._grouped(output)
        changed = share.reshape(*grouped.shape[:-2], self.stop - self.start, grouped.shape[-1])
        pieces = (grouped[..., : self.start, :], changed, grouped[..., self.stop :, :])
        return torch.cat(pieces, dim=-2).flatten(-3)

    def _grouped(self, output: Tensor) -> Tensor:
        return output.reshape(*output.shape[:-1], self.groups, self.of, output.shape[-1] // (self.groups * self.of))


_LABELS: Final = frozenset({"q", "k", "v", "proj", "w1", "w2", "gate"})


def is_on_parameter(leaf: str, dimensions: int) -> bool:
    """Return whether a tensor of a LoRA is of a parameter that a module reads itself, and not of a layer or of a part of one.

    Args:
        leaf: its name in the delta, after that of the module, such as ``"down_proj.lora_A"``.
        dimensions: their number; 3 for a stack of experts.
    """
    label, _, rest = leaf.partition(".")
    return dimensions == 3 or (bool(rest) and label not in _LABELS)


def adjacent_parts(labels: str, sizes: tuple[int, ...] = (), groups: int = 1) -> tuple[Part, ...]:
    """Build the parts of a layer from comma-separated labels and the sizes in each group; by default all are equal."""
    names = labels.split(",")
    sizes = sizes or (1,) * len(names)
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    rows = zip(names, starts, sizes, strict=True)
    return tuple(Part(name, start, start + size, sum(sizes), groups) for name, start, size in rows if name)


def _heads(core: nn.Module, *names: str) -> int:
    """Return a number that an attention or its config has, by the first of these names that exists."""
    for holder in (core, getattr(core, "config", None)):
        for name in names:
            if isinstance(value := getattr(holder, name, None), int) and not isinstance(value, bool):
                return value
    raise LookupError(names)


_HEADS: Final = ("num_attention_heads", "num_heads", "n_head", "n_heads")
_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "kv_heads")


def _thirds(core: nn.Module) -> tuple[Part, ...]:
    """Return q, then k, then v; in a cross-attention with its own q layer, k, then v."""
    crossing = "q_attn" in core._modules
    return adjacent_parts("k,v" if crossing else "q,k,v")


def _halves(core: nn.Module) -> tuple[Part, ...]:
    """Return k, then v."""
    return adjacent_parts("k,v")


def _by_head(core: nn.Module) -> tuple[Part, ...]:
    """Return q, k and v of the first head, then of the second, and so on."""
    return adjacent_parts("q,k,v", groups=_heads(core, *_HEADS))


def _grouped_query(core: nn.Module) -> tuple[Part, ...]:
    """Return all heads of q, then the fewer heads of k, then those of v."""
    heads, fewer = _heads(core, *_HEADS), _heads(core, *_KV_HEADS)
    return adjacent_parts("q,k,v", (heads, fewer, fewer))


def _by_group(core: nn.Module) -> tuple[Part, ...]:
    """Return the layout of Falcon: the query heads of the first key head, that key head and its value head, then the next."""
    heads, groups = _heads(core, *_HEADS), _heads(core, "num_kv_heads")
    return adjacent_parts("q,k,v", (heads // groups, 1, 1), groups)


def _multi_query(core: nn.Module) -> tuple[Part, ...]:
    """Return the layout of GPT-BigCode: all heads of q and one each of k and v; without multi-query, by head."""
    heads = _heads(core, "num_heads")
    if "q_attn" in core._modules:  # in a cross-attention
        return ()
    return (
        adjacent_parts("q,k,v", (heads, 1, 1))
        if getattr(core, "multi_query", False)
        else adjacent_parts("q,k,v", groups=heads)
    )


def _four_shards(core: nn.Module) -> tuple[Part, ...]:
    """Return the layout of CodeGen: the shards of the four processors that trained it, each q, v, k."""
    return adjacent_parts("q,v,k", groups=4)


def _latent(core: nn.Module) -> tuple[Part, ...]:
    """Return the layout of multi-head latent attention: in each head the part of k without positions, then v.

    The rest of k comes from elsewhere.
    """
    keys, values = _heads(core, "qk_nope_head_dim"), _heads(core, "v_head_dim")
    return adjacent_parts(",v", (keys, values), _heads(core, *_HEADS))


Layout = Callable[[nn.Module], tuple[Part, ...]]

_LAYOUTS: Final[Mapping[str, Layout]] = {
    **dict.fromkeys(
        (
            *("BarkSelfAttention", "Blip2Attention", "BlipAttention", "CohereCompassVisionAttention", "GPT2Attention"),
            *("DecisionTransformerGPT2Attention", "Florence2VisionChannelAttention", "Florence2VisionWindowAttention"),
            *("Glm4vMoeVisionAttention", "Glm4vVisionAttention", "Glm5NextVisionAttention", "GlmImageVisionAttention"),
            *("GlmOcrVisionAttention", "GotOcr2VisionAttention", "HieraMaskUnitAttention", "ImageGPTAttention"),
            *("InstructBlipAttention", "InstructBlipVideoAttention", "MgpstrAttention", "ModernBertAttention"),
            *(
                "MptAttention",
                "PPFormulaNetVisionAttention",
                "Qwen2_5_VLVisionAttention",
                "Qwen3OmniMoeVisionAttention",
            ),
            *(
                "Qwen3VLMoeVisionAttention",
                "Qwen3VLVisionAttention",
                "Qwen3_5MoeVisionAttention",
                "Qwen3_5VisionAttention",
            ),
            *("Qwen4ExpVisionAttention", "SLANeXtVisionAttention", "Sam2MultiScaleAttention", "SamHQVisionAttention"),
            *("SamVisionAttention", "SegGptAttention", "TimesformerSelfAttention", "UnlimitedOcrSamVisionAttention"),
            *("VitDetAttention",),
        ),
        _thirds,
    ),
    **dict.fromkeys(
        (
            *("BloomAttention", "GPTNeoXAttention", "GPTNeoXJapaneseAttention", "PersimmonAttention"),
            *("MiniMaxLightningAttention", "DisentangledSelfAttention"),
        ),
        _by_head,
    ),
    **dict.fromkeys(
        ("Phi3Attention", "Phi4MultimodalAttention", "DbrxAttention", "Exaone4_5_VisionAttention"), _grouped_query
    ),
    "FalconAttention": _by_group,
    "GPTBigCodeAttention": _multi_query,
    "CodeGenAttention": _four_shards,
    **dict.fromkeys(
        (
            "EvollaSequenceCompressorAttention",
            "GraniteSpeechConformerAttention",
            "GraniteSpeechPlusConformerAttention",
            "JetMoeAttention",
        ),
        _halves,
    ),
}
# Classes with ambiguous names, distinguished by the module that defines them.
_LAYOUTS_BY_MODULE: Final[Mapping[tuple[str, str], Layout]] = {
    ("Attention", "modeling_openai"): _thirds,
    ("VisionAttention", "modeling_qwen2_vl"): _thirds,
}


def fused_parts(core: nn.Module, key: str, width: int) -> tuple[Part, ...]:
    """Return the parts of a fused layer of an attention; empty if they are not certain.

    Args:
        core: the attention.
        key: the attention's name for the layer.
        width: width of the layer's output.
    """
    if key == "kv_b_proj":
        layout: Layout | None = _latent
    else:
        bases = [(base.__name__, base.__module__.rpartition(".")[2]) for base in type(core).__mro__]
        layout = next(filter(None, (_LAYOUTS.get(b[0]) or _LAYOUTS_BY_MODULE.get(b) for b in bases)), None)
    try:
        parts = layout(core) if layout else ()
    except (LookupError, RuntimeError):  # the attention has no head count, or its config has one per layer
        return ()
    return parts if all(width % (part.groups * part.of) == 0 for part in parts) else ()


def gate_parts(holder: nn.Module) -> tuple[Part, ...]:
    """Return the parts of a layer that combines gate and first matrix; empty if they are not certain.

    The gate is the part that is activated.
    """
    names = {base.__name__ for base in type(holder).__mro__}
    if names & _GATE_FIRST:
        return adjacent_parts("gate,w1")
    return adjacent_parts("w1,gate") if names & _GATE_LAST else ()


_GATE_FIRST: Final = frozenset(
    (
        *("DiaMLP", "Glm4MLP", "Glm4vTextMLP", "GlmImageTextMLP", "GlmMLP", "GlmOcrTextMLP", "MoshiGatingMLP"),
        *("KyutaiSpeechToTextGatingMLP", "ModernBertDecoderMLP", "ModernBertMLP", "Phi3MLP", "Phi4MultimodalMLP"),
        "Zamba2MLP",
    )
)
_GATE_LAST: Final = frozenset(("MoonshineDecoderMLP", "Phi4MultimodalAudioMLP"))
