"""LoRA on the projections of `nn.MultiheadAttention` in PEFT's form.

    in_proj     A = [A_q; A_k; A_v], B = the blocks B_q, B_k, B_v in the rows of q, k and v
    out_proj    A, B / 2, since PEFT adds this update twice

Both have the rank of the module, so smaller updates are padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor, nn

from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone

_ROWS: Final = ("q", "k", "v")
_OUT: Final = "base_layer.out_proj"

Parts = Mapping[str, Mapping[str, Tensor]]


def is_attention(module: str, backbone: Backbone) -> bool:
    """Return whether a module is an `nn.MultiheadAttention`, by its tensors."""
    return not backbone.shapes.keys().isdisjoint({f"{module}.in_proj_weight", f"{module}.q_proj_weight"})


def rows_of(parts: Parts) -> int:
    """Return how many ranks of a projection the update of in_proj has."""
    return max(1, len(parts.keys() & {*_ROWS}))


def attention_tensors(module: str, parts: Parts, backbone: Backbone, rank: int) -> dict[str, Tensor]:
    """Return PEFT's tensors of an attention.

    Args:
        parts: A and B of each projection.
        rank: the rank of the module.

    Raises:
        ConfigError: PEFT has no LoRA on it.
    """
    if f"{module}.in_proj_weight" not in backbone.shapes:
        msg = f"PEFT has no LoRA on {module}, whose key or value are of another width than its query. Load it with deltahub."
        raise ConfigError(msg)
    width = backbone.shapes[f"{module}.in_proj_weight"][1]
    like = next(iter(parts.values()))["lora_A"]
    down, up = like.new_zeros(rank, width), like.new_zeros(3 * width, rank)
    start = 0
    for number, label in enumerate(_ROWS):
        if label in parts:
            size = len(parts[label]["lora_A"])
            down[start : start + size] = parts[label]["lora_A"]
            up[number * width : (number + 1) * width, start : start + size] = parts[label]["lora_B"]
            start += size
    out = parts.get("proj") or {"lora_A": like.new_zeros(0, width), "lora_B": like.new_zeros(width, 0)}
    extra = rank - len(out["lora_A"])
    return {
        f"{module}.lora_A.weight": down,
        f"{module}.lora_B.weight": up,
        f"{module}.{_OUT}.lora_A.weight": nn.functional.pad(out["lora_A"], (0, 0, 0, extra)),
        f"{module}.{_OUT}.lora_B.weight": nn.functional.pad(out["lora_B"], (0, extra)) / 2,
    }
