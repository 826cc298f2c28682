"""The initial updates that PiSSA and OLoRA subtracted from the backbone's weights, recomputed as PEFT does on loading.

    PiSSA   W = U S V^T,   B0 A0 = U_r S_r V_r^T / s     Meng et al. 2024, https://arxiv.org/abs/2404.02948
    OLoRA   W = Q R,       B0 A0 = Q_r R_r               Büyükakyüz 2024, https://arxiv.org/abs/2406.01775

PEFT computes W - s B0 A0 + s B A, which is a plain LoRA on W with the sum of both ranks: A' = [A; A0], B' = [B, -B0].
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from deltahub.errors import ConfigError

_RELATIVE_GAP: Final = 1e-6  # below this gap, float32 cannot separate the subtracted directions from the rest


@torch.no_grad()
def initial_update(start: str, module: str, weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """Compute A0 and B0 of a layer.

    Args:
        start: ``"pissa"`` or ``"olora"``.
        module: the layer's name, for messages.
        weight: the backbone's weight, ``(n_out, n_in)``.
        rank: the rank of the adapter.
        scale: s.

    Returns:
        A0 ``(r, n_in)`` and B0 ``(n_out, r)`` in float32, r at most the smaller width.

    Raises:
        ConfigError: the weight does not determine them.
    """
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16) or weight.dim() != 2:
        msg = (
            f"The adapter was initialised with {start}, which changed the weights of its backbone, and {module} of this one holds no plain "
            f"floating-point matrix ({weight.dtype}). Load it on the backbone before quantisation, or convert it to a plain LoRA in PEFT."
        )
        raise ConfigError(msg)
    weight = weight.detach().float().cpu()
    if start == "olora":
        q, r = torch.linalg.qr(weight)
        sizes = r.diagonal().abs()
        certain = sizes[:rank].min() > _RELATIVE_GAP * sizes.max()
        down, up = r[:rank].contiguous(), q[:, :rank].contiguous()
    else:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        certain = rank >= len(s) or s[rank - 1] - s[rank] > _RELATIVE_GAP * s[0]
        root = (s[:rank] / scale).sqrt()
        down, up = root[:, None] * v[:rank], u[:, :rank] * root
    if not certain:
        msg = (
            f"The adapter was initialised with {start}, and what that took out of {module} cannot be told from its weight: it does not "
            "determine the directions. Convert it to a plain LoRA in PEFT, where it was trained."
        )
        raise ConfigError(msg)
    return down, up
