"""Conversion of PEFT's AdaLoRA in both directions: the same tensors, with E as a column there.

PEFT keeps in `rank_pattern` which of the first `init_r` directions of a module are in its file. An adapter that also trains rows of
embeddings or convolutions, or whose scale depends on the rank, becomes a LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.address import exact_addresses
from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.peft.adapter import Exported, named
from deltahub.formats.peft.low_rank_reading import adalora as adalora_update
from deltahub.formats.peft.low_rank_reading import low_rank
from deltahub.formats.peft.module_matching import target_names
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter

# PEFT's options of the same name and meaning, with their defaults.
_OPTIONS: Final[Mapping[str, Any]] = {
    "init_r": 12,
    "lora_dropout": 0.0,
    "tinit": 0,
    "tfinal": 0,
    "deltaT": 1,
    "beta1": 0.85,
    "beta2": 0.85,
    "orth_reg_weight": 0.5,
}


def read(adapter: SavedAdapter) -> Converted:
    """Convert an adapter to an AdaLoRA, or to a LoRA if it has parts beside that."""
    config, layers = adapter.config, {module: adapter.layer(module) for module in adapter.modules}
    linear = all(
        not isinstance(layer, nn.Embedding) and len(adapter.shape(name)) == 2 for name, layer in layers.items()
    )
    alpha = float(config.get("lora_alpha", 8))
    if adapter.rows or adapter.alone or not layers or not linear or alpha <= 0:
        return low_rank(adalora_update, dropout="lora_dropout")(adapter)
    options = {key: default if config.get(key) is None else config[key] for key, default in _OPTIONS.items()}
    tensors: dict[str, Tensor] = {}
    ranks = {}
    for module in layers:
        down, up, values = (adapter.leaf(module, f"lora_{leaf}") for leaf in "ABE")
        n_in, n_out = adapter.widths(module)
        if down.shape != (values.numel(), n_in) or up.shape != (n_out, values.numel()):
            msg = f"The adapter's A, B and E for {module} do not fit its weight {[n_out, n_in]}. Load its own backbone, or fetch it again."
            raise CheckpointError(msg)
        name, values, kept = adapter.names.real[module], values.flatten(), torch.ones(values.numel(), dtype=torch.bool)
        if not values.numel():  # pruned to nothing: one direction that is off stands in
            down, up, values, kept = (
                down.new_zeros(1, n_in),
                up.new_zeros(n_out, 1),
                values.new_zeros(1),
                kept.new_zeros(1),
            )
        ranks[name] = values.numel()
        own = {"lora_A": down, "lora_B": up, "lora_E": values, "lora_kept": kept}
        tensors |= {delta_key(name, leaf): tensor.contiguous() for leaf, tensor in own.items()}
    addresses = exact_addresses(ranks, adapter.names.real.values())
    pruned = any(rank != options["init_r"] for rank in ranks.values())
    document = {
        "delta_type": "adalora",
        **options,
        "lora_alpha": alpha,
        "target_r": min(int(config.get("target_r") or 8), int(options["init_r"])),
        "total_step": config.get("total_step"),
        "rank_pattern": {addresses[name]: rank for name, rank in ranks.items()} if pruned else {},
        "modified_modules": [addresses[name] for name in sorted(ranks)],
    }
    return Converted(document, tensors)


def write(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], backbone: Backbone) -> Exported:
    """Convert an AdaLoRA to an adapter; directions that are off are left out.

    Raises:
        ConfigError: it acts on parts of a fused layer.
    """
    refuse_parts("AdaLoRA", shares, "lora_A")
    options = {key: document.get(key, default) for key, default in _OPTIONS.items()}
    tensors: dict[str, Tensor] = {}
    chosen = {}
    for module, leaves in shares.items():
        kept = leaves["lora_kept"] | (leaves["lora_E"] != 0)
        chosen[f"{module}.lora_E"] = [*[True] * int(kept.sum()), *[False] * (int(options["init_r"]) - int(kept.sum()))]
        tensors |= {
            f"{module}.lora_A": leaves["lora_A"][kept],
            f"{module}.lora_B": leaves["lora_B"][:, kept],
            f"{module}.lora_E": leaves["lora_E"][kept, None],
        }
    pruned = not all(all(row) for row in chosen.values())
    first_shrinks = int(options["tinit"]) + int(options["tfinal"]) + 1
    options |= {
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": any(map(backbone.is_turned, shares)),
        "init_lora_weights": True,
        "lora_alpha": document.get("lora_alpha", 8),
        "rank_pattern": chosen if pruned else None,
        "target_modules": target_names(shares, {*backbone.modules, *shares}),
        "target_r": document.get("target_r", 8),
        "total_step": document.get("total_step") or first_shrinks,  # PEFT refuses an adapter without it
    }
    return Exported("ADALORA", options, named(tensors))


def refuse_parts(method: str, shares: Mapping[str, Mapping[str, Tensor]], leaf: str) -> None:
    """Refuse a method that acts on parts of a fused layer.

    Args:
        leaf: a tensor that every module has.

    Raises:
        ConfigError: it does.
    """
    if fused := next((module for module, leaves in shares.items() if leaf not in leaves), None):
        msg = f"PEFT has no {method} on a part of a layer, and this one acts on {fused} so. Load it with deltahub."
        raise ConfigError(msg)
