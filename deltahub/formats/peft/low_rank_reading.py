"""Methods of PEFT whose update is a product of two matrices of low rank: they become a LoRA.

    AdaLoRA    dW = s B diag(E) A,  s = alpha / (r_0 + 1e-5), r_0 the rank at the start  https://arxiv.org/abs/2303.10512
    PVeRA      dW = diag(b) B diag(d) A,     A, B shared by all layers, d: means        https://arxiv.org/abs/2512.07703
    DeLoRA     dW = B diag(l / (r |A_i| |B_i|)) A diag(|W_j|)                           https://arxiv.org/abs/2503.18225
    MiSS       dW = D^T E,        E: (r, n_in), E_ij = 1 where j mod r = i              https://arxiv.org/abs/2409.15371
    VB-LoRA    dW = B A,          A, B put together from the vectors of a bank          https://arxiv.org/abs/2405.15179
    GraLoRA    dW = s B A,        A, B put together from k x k blocks, of rank k r      https://arxiv.org/abs/2505.20355
    DEFT       dW = Q (s R - P^T W)                                                     https://openreview.net/forum?id=3wUEDMpMqm

Training continues as for a LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.lora_delta import LowRank, lora_delta
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter
from deltahub.formats.peft.token_rows import token_rows


def low_rank(
    update: Callable[[SavedAdapter, str], LowRank], *, dropout: str = ""
) -> Callable[[SavedAdapter], Converted]:
    """Return a reader that makes a LoRA of each module's update.

    Args:
        update: returns the update of a module.
        dropout: the config's key of the share of the input dropped in training.
    """

    def read(adapter: SavedAdapter) -> Converted:
        updates = {module: _fitting(adapter, module, update(adapter, module)) for module in adapter.modules}
        updates |= token_rows(adapter, set(updates))
        return lora_delta(updates, adapter, dropout=float(adapter.config.get(dropout) or 0.0))

    return read


def _fitting(adapter: SavedAdapter, module: str, update: LowRank) -> LowRank:
    """Return an update after checking that it fits the layer."""
    n_out, *rest = adapter.shape(module)
    n_in = math.prod(rest)
    if update.down.shape[1:] != (n_in,) or update.up.shape != (n_out, len(update.down)):
        msg = f"The adapter's tensors for {module} do not fit its weight {[n_out, *rest]}. Load its own backbone."
        raise CheckpointError(msg)
    return update


def tokens(adapter: SavedAdapter) -> Converted:
    """Convert an adapter that trains only single rows of embeddings."""
    return lora_delta(token_rows(adapter, ()), adapter)


def adalora(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of AdaLoRA; the rank that divides its scale is the one at the start, wherever it was pruned to."""
    down, up, diagonal = (adapter.leaf(module, f"lora_{leaf}") for leaf in "ABE")
    if not len(down) == up.shape[-1] == diagonal.numel():
        msg = f"The adapter's A, B and E for {module} have different ranks. Fetch it again."
        raise CheckpointError(msg)
    start = int(adapter.config.get("init_r", 12))
    alpha = float(adapter.config.get("lora_alpha", 8))
    return LowRank(down * diagonal.view(-1, 1), up, (alpha if alpha > 0 else len(down)) / (start + 1e-5))


def pvera(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of PVeRA as it is outside training."""
    if adapter.config.get("sample_at_inference"):
        msg = "The adapter is a PVERA that draws its update at random in every call (sample_at_inference). Load it with PEFT."
        raise ConfigError(msg)
    down, up = projections(adapter, "pvera", 2)
    n_in, n_out = adapter.widths(module)
    scales, gains = adapter.leaf(module, "pvera_lambda_d"), adapter.leaf(module, "pvera_lambda_b")
    rank = len(scales) // 2
    return LowRank(scales[:rank, None] * down[:rank, :n_in], gains[:, None] * up[:n_out], 1.0)


def projections(adapter: SavedAdapter, kind: str, times: int) -> tuple[Tensor, Tensor]:
    """Return the shared A and B, from the file or drawn as PEFT draws them; A has `times` the rank."""
    if adapter.config.get("save_projection", True) or ("", f"{kind}_A") in adapter.leaves:
        return adapter.leaf("", f"{kind}_A"), adapter.leaf("", f"{kind}_B")
    widths = [adapter.widths(module) for module in adapter.modules]
    n_in, n_out = max(width for width, _ in widths), max(width for _, width in widths)
    rank = int(adapter.config.get("r", 256))
    draw = torch.Generator().manual_seed(int(adapter.config.get("projection_prng_key") or 0))
    return tuple(  # type: ignore[return-value]
        torch.empty(rows, columns).uniform_(-math.sqrt(6 / columns), math.sqrt(6 / columns), generator=draw)
        for rows, columns in ((times * rank, n_in), (n_out, rank))
    )


def delora(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of DeLoRA."""
    down, up, strength, norms = (adapter.leaf(module, f"delora_{leaf}") for leaf in ("A", "B", "lambda", "w_norm"))
    factor = strength / len(down) / (down.norm(dim=1).clamp(min=1e-4) * up.norm(dim=0).clamp(min=1e-4))
    return LowRank(factor[:, None] * down * norms, up, 1.0)


def miss(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of MiSS; the variant "mini" repeats its columns."""
    block, (n_in, n_out) = adapter.leaf(module, "miss_block"), adapter.widths(module)
    if adapter.config.get("init_weights") == "mini":
        block = block.repeat(1, n_out // max(1, block.shape[1]))
    ones = torch.nn.functional.one_hot(torch.arange(n_in) % len(block), len(block))
    return LowRank(ones.T.to(block.dtype), block.T, 1.0)


def vblora(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of VB-LoRA, with all logits or only the largest ones in the file."""
    down, up = (_from_bank(adapter, module, f"vblora_logits_{side}") for side in "AB")
    return LowRank(down.flatten(1), up.transpose(1, 2).reshape(-1, up.shape[1]), 1.0)


def _from_bank(adapter: SavedAdapter, module: str, leaf: str) -> Tensor:
    """Return weighted sums of the bank's vectors: the logits ``(a, b, vectors)`` give ``(a, b, length)``."""
    bank = adapter.leaf("", "vblora_vector_bank")
    if adapter.config.get("save_only_topk_weights"):
        places = adapter.leaf(module, f"{leaf}_topk_indices").long()
        weights = adapter.leaf(module, f"{leaf}_topk_weights")
        weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    else:
        logits, places = adapter.leaf(module, leaf).topk(int(adapter.config.get("topk", 2)), dim=-1)
        weights = logits.softmax(-1)
    if int(places.min()) < 0 or int(places.max()) >= len(bank):
        msg = f"The adapter's {leaf} for {module} means vectors that its bank does not have. Fetch it again."
        raise CheckpointError(msg)
    return (weights.unsqueeze(-1) * bank[places]).sum(-2)


def gralora(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of GraLoRA: block (m, n) has its own s columns of A_n and rows of B_m."""
    config = adapter.config
    downs, ups = adapter.leaf(module, "gralora_A"), adapter.leaf(module, "gralora_B")
    blocks, width, rank = downs.shape
    own = rank // blocks
    down, up = (
        downs.new_zeros(blocks, blocks, own, blocks, width),
        ups.new_zeros(blocks, blocks, own, blocks, ups.shape[2]),
    )
    for n in range(blocks):
        for m in range(blocks):
            down[n, m, :, n] = downs[n, :, m * own : (m + 1) * own].T
            up[n, m, :, m] = ups[m, n * own : (n + 1) * own]
    down, up = down.reshape(-1, blocks * width), up.reshape(blocks * rank, -1).T
    hybrid = int(config.get("hybrid_r") or 0)
    if hybrid:
        down = torch.cat([down, adapter.leaf(module, "gralora_A_general")])
        up = torch.cat([up, adapter.leaf(module, "gralora_B_general")], dim=1)
    return LowRank(down, up, float(config.get("alpha", 64)) / (int(config.get("r", 32)) + hybrid))


def deft(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of DEFT, or of PaRa, which only takes away."""
    config, projection = adapter.config, adapter.leaf(module, "deft_P")
    basis, right = projection, torch.relu(projection)
    if config.get("decomposition_method", "relu") == "qr":
        basis = right = torch.linalg.qr(projection).Q
    down = -right.T @ adapter.weight(module)
    if not config.get("para"):
        alpha: Any = config.get("alpha")
        down = down + adapter.leaf(module, "deft_R") * (float(alpha) / len(down) if alpha else 1.0)
    return LowRank(down, basis, 1.0)


def unilora(adapter: SavedAdapter, module: str) -> LowRank:
    """Read an update of Uni-LoRA, whose file has the places of its values."""
    values = adapter.leaf("", "unilora_theta_d")
    sides = [
        values[adapter.leaf(module, f"unilora_indices_{side}").long()] * adapter.leaf(module, f"unilora_scales_{side}")
        for side in "AB"
    ]
    return LowRank(sides[0], sides[1], 1.0)
