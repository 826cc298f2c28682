"""Conversion of PEFT's LoRA and DoRA to deltas.

Each module keeps its own rank and scale, so training continues as in PEFT.

The initial updates that PiSSA and OLoRA subtracted from the backbone's weights are recomputed as PEFT does on loading:

    PiSSA   W = U S V^T,   B0 A0 = U_r S_r V_r^T / s     Meng et al. 2024, https://arxiv.org/abs/2404.02948
    OLoRA   W = Q R,       B0 A0 = Q_r R_r               Büyükakyüz 2024, https://arxiv.org/abs/2406.01775

PEFT computes W - s B0 A0 + s B A, which is a plain LoRA on W with the sum of both ranks: A' = [A; A0], B' = [B, -B0].
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.structure.experts import is_router
from deltahub.engine.weights import is_turned
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.lora_delta import LowRank, lora_delta
from deltahub.formats.peft.lora_starts import REBUILT_STARTS
from deltahub.formats.peft.module_matching import by_pattern
from deltahub.formats.peft.parameter_reading import modules_of, parameters_of
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter
from deltahub.formats.peft.token_rows import token_rows

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


_MAGNITUDE: Final = "lora_magnitude_vector"


def lora(adapter: SavedAdapter) -> Converted:
    """Convert a LoRA or DoRA to a delta.

    Raises:
        CheckpointError: a tensor is missing, or its rank differs from the config's.
        ConfigError: DeltaHub has no LoRA of this kind.
    """
    config = adapter.config
    parameters, others = parameters_of(adapter), modules_of(adapter)
    on_parameters = {name: update for name, update in parameters.items() if isinstance(update, LowRank)}
    updates = {module: _update(adapter, module) for module in adapter.modules if module not in others}
    for module, update in updates.items():
        update.magnitude = adapter.get(module, _MAGNITUDE)
        if (update.magnitude is not None) == bool(config.get("use_dora")):
            update.magnitude = None if update.magnitude is None else update.magnitude.flatten()
            continue
        has = (
            "is a DoRA without a magnitude for" if config.get("use_dora") else "is not a DoRA, and has a magnitude for"
        )
        msg = f"The adapter {has} {module}. Fetch it again."
        raise CheckpointError(msg)
    for module in [name for name in updates if is_router(name, adapter.layer(name))]:
        on_parameters[f"{module}.weight"] = replace(updates.pop(module), parameter="weight")
    updates |= token_rows(adapter, set(updates))
    dropout = float(config.get("lora_dropout") or 0.0)
    converted = lora_delta(updates, adapter, dropout=dropout, parameters=on_parameters)
    return replace(converted, replaced={n: value for n, value in parameters.items() if isinstance(value, Tensor)})


def _update(adapter: SavedAdapter, module: str) -> LowRank:
    """Read the update of a module, including what the initialisation subtracted from the backbone."""
    config = adapter.config
    down, up, bias = (adapter.get(module, leaf) for leaf in ("lora_A", "lora_B", "lora_B.bias"))
    if down is None or up is None:
        msg = f"The adapter has only one of A and B for {module}. Fetch it again."
        raise CheckpointError(msg)
    if (bias is not None) != bool(config.get("lora_bias")):
        msg = f"The adapter's file has {'a' if bias is not None else 'no'} bias of B for {module}, unlike its config. Fetch it again."
        raise CheckpointError(msg)
    down, up = _flat(adapter, module, down, up)
    rank = int(by_pattern(config.get("rank_pattern"), adapter.spelled(module), config.get("r", 8)))
    alpha = float(by_pattern(config.get("alpha_pattern"), adapter.spelled(module), config.get("lora_alpha", 8)))
    start = config.get("init_lora_weights")
    rebuilt = start in REBUILT_STARTS
    # These two initialisations limit the rank to the layer's smaller width.
    expected = min(rank, down.shape[1], up.shape[0]) if rebuilt else rank
    if (len(down), up.shape[1]) != (expected, expected):
        msg = f"The adapter's A and B for {module} have rank {len(down)} and {up.shape[1]}; its config says {rank}. Fetch it again."
        raise CheckpointError(msg)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if rebuilt:
        down, up = _with_initial(str(start), module, down, up, scale, adapter)
    return LowRank(down, up, scale, bias=bias)


def _flat(adapter: SavedAdapter, module: str, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B as matrices; those of a convolution are kernels.

    Raises:
        ConfigError: DeltaHub has no LoRA on this kind of layer.
    """
    layer = adapter.layer(module)
    if down.dim() == up.dim() == 2:
        return down, up
    fits = isinstance(layer, _ConvNd) and down.dim() == up.dim() and down.shape[2:] == tuple(layer.kernel_size)
    if not fits or not has_same_patches(layer):
        kind = type(layer).__name__
        msg = f"The adapter acts on {module}, a {kind}, where a delta has no LoRA of this shape. Load it with PEFT."
        raise ConfigError(msg)
    return down.flatten(1), up.flatten(1)


def has_same_patches(layer: Any) -> bool:
    """Return whether PEFT's A, a convolution of the same kernel, stride and padding, sees the patches of a convolution."""
    return bool(layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros")


def _with_initial(
    start: str, module: str, down: Tensor, up: Tensor, scale: float, adapter: SavedAdapter
) -> tuple[Tensor, Tensor]:
    """Convert A and B trained on the weight left by the initialisation `start` to A and B on the plain weight."""
    layer = adapter.layer(module)
    if isinstance(layer, nn.Embedding) or (start == "olora" and is_turned(layer)):
        msg = f"The adapter was initialised with {start} on {module}, a {type(layer).__name__}, on which PEFT's own does not work. Load it with PEFT."
        raise ConfigError(msg)
    if (coded := quantised(layer)) is not None:
        msg = (
            f"The adapter was initialised with {start}, which changed the weights of its backbone, and {module} of this one is quantised "
            f"({coded.name}). Load it on the backbone before quantisation, or convert it to a plain LoRA in PEFT."
        )
        raise ConfigError(msg)
    weight = adapter.value(f"{module}.weight")
    if weight is None:
        kind = type(adapter.names.backbone).__name__
        msg = f"The adapter was initialised with {start}, and {module} of this {kind} has no weight. Load its own backbone."
        raise CheckpointError(msg)
    first_down, first_up = initial_update(start, module, weight.T if is_turned(layer) else weight, len(down), scale)
    if first_down.shape != down.shape or first_up.shape != up.shape:
        msg = f"The adapter's A and B for {module} do not fit its weight {list(weight.shape)}. Load its own backbone."
        raise CheckpointError(msg)
    return torch.cat([down.float(), first_down]), torch.cat([up.float(), -first_up], dim=1)
