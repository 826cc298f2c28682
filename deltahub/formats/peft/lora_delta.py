"""A LoRA delta made of the updates of single modules, each with its own rank and scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.checkpoint.address import exact_addresses
from deltahub.engine.site import delta_key
from deltahub.engine.weights import is_turned
from deltahub.errors import ConfigError
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter


@dataclass
class LowRank:
    """The update of a module: ``scale * up @ down``, with ``down`` ``(r, n_in)`` and ``up`` ``(n_out, r)``.

    That of a stack of matrices has one more dimension in front.

    Attributes:
        magnitude: DoRA's norm of each row, ``(n_out,)``.
        bias: what is added to the output together with the update, ``(n_out,)``, scaled as well.
        parameter: the module's name for the parameter with the update; empty for a layer. The update is then known by the parameter's name.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None
    bias: Tensor | None = None
    parameter: str = ""

    @property
    def rank(self) -> int:
        """The rank of the update, of each matrix in a stack."""
        return self.down.shape[-2]

    @property
    def alpha(self) -> float:
        """The scale times the rank."""
        return self.scale * self.rank


def lora_delta(
    updates: Mapping[str, LowRank],
    adapter: SavedAdapter,
    *,
    dropout: float = 0.0,
    parameters: Mapping[str, LowRank] | None = None,
) -> Converted:
    """Make a LoRA of the updates of single modules, and of the weights replaced in one of the modules that share them.

    Args:
        updates: by plain name of the module.
        dropout: share of the input dropped in training.
        parameters: updates of parameters that their modules read themselves, by plain name of the parameter.

    Raises:
        ConfigError: the adapter replaces a weight where a LoRA cannot.
    """
    use_dora = any(update.magnitude is not None for update in updates.values())
    updates = dict(updates)
    for module, weight in adapter.alone.items():
        updates[module] = _replacement(module, weight, adapter, updates, use_dora=use_dora)
    use_bias = any(update.bias is not None for update in updates.values())
    for module, update in updates.items():
        if use_bias and update.bias is None and not isinstance(adapter.layer(module), nn.Embedding):
            update.bias = update.up.new_zeros(len(update.up))
    updates |= parameters or {}
    real = {_real_name(name, update, adapter): update for name, update in sorted(updates.items())}
    names = [*adapter.names.real.values(), *(adapter.names.tensors.values() if parameters else ())]
    return Converted(*lora_options(real, names, dropout=dropout))


def _real_name(name: str, update: LowRank, adapter: SavedAdapter) -> str:
    """Return the name in the backbone of a module or parameter, given its plain name."""
    if not update.parameter:
        return adapter.names.real[name]
    module = adapter.names.real[name.removesuffix(update.parameter).rstrip(".")]
    return f"{module}.{update.parameter}".lstrip(".")


def lora_options(
    updates: Mapping[str, LowRank], modules: Iterable[str], *, dropout: float = 0.0
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the options and tensors of a LoRA that makes the updates of single modules.

    Args:
        updates: by name of the module in the backbone.
        modules: the names of all modules of the backbone.
        dropout: share of the input dropped in training.
    """
    tensors: dict[str, Tensor] = {}
    for name, update in updates.items():
        leaves = {
            "lora_A": update.down,
            "lora_B": update.up,
            "lora_magnitude_vector": update.magnitude,
            "lora_bias": update.bias,
        }
        module, within = name, ""
        if update.parameter:
            module, within = name.removesuffix(update.parameter).rstrip("."), f"{update.parameter}."
        tensors |= {delta_key(module, within + leaf): t.contiguous() for leaf, t in leaves.items() if t is not None}
    rank, alpha = _most_common(updates)
    addresses = exact_addresses(updates, modules)
    options = {
        "delta_type": "lora",
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "lora_r": rank,
        "modified_modules": list(addresses.values()),
        "use_dora": any(update.magnitude is not None for update in updates.values()),
        "rank_pattern": {addresses[name]: u.rank for name, u in updates.items() if u.rank != rank},
        "alpha_pattern": {addresses[name]: u.alpha for name, u in updates.items() if u.alpha != alpha},
    }
    if any(update.bias is not None for update in updates.values()):
        options["use_bias"] = True
    return options, tensors


def _most_common(updates: Mapping[str, LowRank]) -> tuple[int, float]:
    """Return the most common rank and alpha."""
    if not updates:
        return 8, 8.0  # only parameters of the backbone are trained
    return Counter((update.rank, update.alpha) for update in updates.values()).most_common(1)[0][0]


def _replacement(
    module: str, weight: Tensor, adapter: SavedAdapter, updates: Mapping[str, LowRank], *, use_dora: bool
) -> LowRank:
    """Express the new weight of a single module as a LoRA of full rank."""
    layer = adapter.layer(module)
    plain = type(layer).forward in (nn.Linear.forward, nn.Embedding.forward)
    if use_dora or module in updates or not plain or getattr(layer, "max_norm", None) is not None:
        reason = "beside a DoRA" if use_dora else f"in a {type(layer).__name__} that has a LoRA or a forward of its own"
        msg = f"The adapter replaces the weight of {module} alone, which it shares with another layer; {reason} DeltaHub cannot. Load it with PEFT."
        raise ConfigError(msg)
    live = adapter.value(f"{module}.weight")
    assert live is not None  # `trained` compared it
    live = live.detach().cpu()
    wide = torch.promote_types(torch.promote_types(live.dtype, weight.dtype), torch.float32)
    change = weight.to(wide) - live.to(wide)
    identity = torch.eye(change.shape[1], dtype=wide)
    return LowRank(change.T.contiguous(), identity, 1.0) if is_turned(layer) else LowRank(identity, change, 1.0)
