"""Conversion of PEFT's LoRA and DoRA to deltas.

Each module keeps its own rank and scale, so training continues as in PEFT.

A weight replaced in only one of several modules that share it becomes a full-rank LoRA on that module:

    embedding   W' - W = B A,   A = (W' - W)^T, B = 1          head   A = 1, B = W' - W          s = 1

The initial updates that PiSSA and OLoRA subtracted from the backbone's weights are recomputed as PEFT does on loading:

    PiSSA   W = U S V^T,   B0 A0 = U_r S_r V_r^T / s     Meng et al. 2024, https://arxiv.org/abs/2404.02948
    OLoRA   W = Q R,       B0 A0 = Q_r R_r               Büyükakyüz 2024, https://arxiv.org/abs/2406.01775

PEFT computes W - s B0 A0 + s B A, which is a plain LoRA on W with the sum of both ranks: A' = [A; A0], B' = [B, -B0].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.site import delta_key
from deltahub.engine.weights import is_turned
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.fields import REBUILT_STARTS
from deltahub.formats.peft.module_matching import by_pattern
from deltahub.formats.peft.saved_modules import own_values
from deltahub.formats.peft.tensor_names import Leaves, Names

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


@dataclass
class _Update:
    """The update of a module: ``scale * up @ down``."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def alpha(self) -> float:
        """The scale times the rank."""
        return self.scale * len(self.down)


def lora(
    config: Mapping[str, Any], leaves: Leaves, names: Names, alone: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a LoRA or DoRA to options and tensors of a delta.

    Args:
        config: PEFT's config.
        leaves: tensors by plain name of the module and ``"A"``, ``"B"`` or ``"lora_magnitude_vector"``.
        alone: new weights of single modules whose weight is shared in the backbone.

    Raises:
        CheckpointError: a tensor is missing, or its rank differs from the config's.
        ConfigError: DeltaHub has no LoRA of this kind.
    """
    modules = sorted({module for module, _ in leaves})
    updates = {module: _update(config, leaves, module, names) for module in modules}
    use_dora = bool(config.get("use_dora"))
    tensors: dict[str, Tensor] = {}
    for module in modules if use_dora else ():
        if (module, _MAGNITUDE) not in leaves:
            msg = f"The adapter is a DoRA without a magnitude for {module}. Fetch it again."
            raise CheckpointError(msg)
        tensors[delta_key(names.real[module], _MAGNITUDE)] = leaves[module, _MAGNITUDE].flatten()
    if not use_dora and (odd := next((module for module, leaf in leaves if leaf == _MAGNITUDE), None)):
        msg = f"The adapter has a magnitude for {odd}, and its config says that it is not a DoRA. Fetch it again."
        raise CheckpointError(msg)
    for module, weight in alone.items():
        updates[module] = _replacement(module, weight, names, updates, use_dora=use_dora)
    for module, update in updates.items():
        tensors[delta_key(names.real[module], "lora_A")] = update.down
        tensors[delta_key(names.real[module], "lora_B")] = update.up
    rank, alpha = _most_common(updates)
    real = {names.real[module]: update for module, update in sorted(updates.items())}
    options = {
        "delta_type": "lora",
        "lora_alpha": alpha,
        "lora_dropout": float(config.get("lora_dropout") or 0.0),
        "lora_r": rank,
        "modified_modules": list(real),
        "use_dora": use_dora,
        "rank_pattern": {name: len(update.down) for name, update in real.items() if len(update.down) != rank},
        "alpha_pattern": {name: update.alpha for name, update in real.items() if update.alpha != alpha},
    }
    return options, tensors


def _most_common(updates: Mapping[str, _Update]) -> tuple[int, float]:
    """Return the most common rank and alpha."""
    return Counter((len(update.down), update.alpha) for update in updates.values()).most_common(1)[0][0]


def _update(config: Mapping[str, Any], leaves: Leaves, module: str, names: Names) -> _Update:
    """Read the update of a module, including what the initialisation subtracted from the backbone."""
    if (module, "A") not in leaves or (module, "B") not in leaves:
        msg = f"The adapter has only one of A and B for {module}. Fetch it again."
        raise CheckpointError(msg)
    down, up = leaves[module, "A"], leaves[module, "B"]
    if down.dim() != 2 or up.dim() != 2:
        msg = f"The adapter acts on {module}, a {type(names.modules[module]).__name__}, where a delta has no LoRA. Load it with PEFT."
        raise ConfigError(msg)
    rank = int(by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))
    alpha = float(by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    start = config.get("init_lora_weights")
    rebuilt = start in REBUILT_STARTS
    # These two initialisations limit the rank to the layer's smaller width.
    expected = min(rank, down.shape[1], up.shape[0]) if rebuilt else rank
    if (len(down), up.shape[1]) != (expected, expected):
        msg = f"The adapter's A and B for {module} have rank {len(down)} and {up.shape[1]}; its config says {rank}. Fetch it again."
        raise CheckpointError(msg)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if rebuilt:
        down, up = _with_initial(str(start), module, down, up, scale, names)
    return _Update(down, up, scale)


def _with_initial(
    start: str, module: str, down: Tensor, up: Tensor, scale: float, names: Names
) -> tuple[Tensor, Tensor]:
    """Convert A and B trained on the weight left by the initialisation `start` to A and B on the plain weight."""
    layer = names.modules[module]
    if isinstance(layer, nn.Embedding) or (start == "olora" and is_turned(layer)):
        msg = f"The adapter was initialised with {start} on {module}, a {type(layer).__name__}, on which PEFT's own does not work. Load it with PEFT."
        raise ConfigError(msg)
    weight = own_values(names.backbone).get(names.tensors.get(f"{module}.weight", ""))
    if weight is None:
        msg = f"The adapter was initialised with {start}, and {module} of this {type(names.backbone).__name__} has no weight. Load its own backbone."
        raise CheckpointError(msg)
    first_down, first_up = initial_update(start, module, weight.T if is_turned(layer) else weight, len(down), scale)
    if first_down.shape != down.shape or first_up.shape != up.shape:
        msg = f"The adapter's A and B for {module} do not fit its weight {list(weight.shape)}. Load its own backbone."
        raise CheckpointError(msg)
    return torch.cat([down.float(), first_down]), torch.cat([up.float(), -first_up], dim=1)


def _replacement(
    module: str, weight: Tensor, names: Names, updates: Mapping[str, _Update], *, use_dora: bool
) -> _Update:
    """Express the new weight of a single module as a LoRA of full rank."""
    layer = names.modules[module]
    plain = type(layer).forward in (nn.Linear.forward, nn.Embedding.forward)
    if use_dora or module in updates or not plain or getattr(layer, "max_norm", None) is not None:
        reason = "beside a DoRA" if use_dora else f"in a {type(layer).__name__} that has a LoRA or a forward of its own"
        msg = f"The adapter replaces the weight of {module} alone, which it shares with another layer; {reason} DeltaHub cannot. Load it with PEFT."
        raise ConfigError(msg)
    live = own_values(names.backbone)[names.tensors[f"{module}.weight"]].detach().cpu()
    wide = torch.promote_types(torch.promote_types(live.dtype, weight.dtype), torch.float32)
    change = weight.to(wide) - live.to(wide)
    identity = torch.eye(change.shape[1], dtype=wide)
    return _Update(change.T.contiguous(), identity, 1.0) if is_turned(layer) else _Update(identity, change, 1.0)
