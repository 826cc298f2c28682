"""LoRA of PEFT on parameters that no layer of their own computes with: they become trained tensors of the backbone.

    experts             W_e' = W_e + s B_e A_e        W: (experts, n_out, n_in), or (experts, n_in, n_out) where the layer says so
    MultiheadAttention  W' = W + s B A                W: in_proj_weight (3 width, width)
                        W' = W + 2 s B A              W: the weight of out_proj

Layers of single experts, as in transformers 4, are parts of such a parameter: `expert_names`. PEFT wraps a module once for each of its
parameters, in the order of the module, the first innermost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.lora_starts import REBUILT_STARTS
from deltahub.formats.peft.module_matching import by_pattern
from deltahub.formats.peft.saved_adapter import SavedAdapter
from deltahub.formats.peft.tensor_names import Names


def parameters_of(adapter: SavedAdapter) -> dict[str, Tensor]:
    """Return the new values of parameters with a LoRA, by name in the backbone.

    Raises:
        CheckpointError: a tensor is missing or does not fit its parameter.
        ConfigError: DeltaHub cannot write into a parameter.
    """
    values: dict[str, Tensor] = {}
    for module, keys in targeted_parameters(adapter.config, adapter.names).items():
        for depth, key in enumerate(reversed(keys)):
            suffix = f"/{depth}" if depth else ""
            down, up = (adapter.leaf(module, f"lora_{side}{suffix}") for side in "AB")
            values |= _updated(adapter, f"{module}.{key}", down, up)
    for module in adapter.modules:
        if isinstance(adapter.layer(module), nn.MultiheadAttention):
            down, up = adapter.leaf(module, "lora_A"), adapter.leaf(module, "lora_B")
            values |= _updated(adapter, f"{module}.in_proj_weight", down, up, module)
            down, up = adapter.leaf(f"{module}.out_proj", "lora_A"), adapter.leaf(f"{module}.out_proj", "lora_B")
            # PEFT merges this one twice, in training too.
            values |= _updated(adapter, f"{module}.out_proj.weight", down, up, module, times=2)
    return values | _of_experts(adapter)


def _of_experts(adapter: SavedAdapter) -> dict[str, Tensor]:
    """Return the new values of stacked parameters whose experts were layers of their own."""
    values: dict[str, Tensor] = {}
    for place, leaves in adapter.experts.items():
        down, up = leaves.get("lora_A"), leaves.get("lora_B")
        live = _live(adapter, place.parameter)
        if down is None or up is None or len(leaves) != 2:
            msg = f"The adapter has {', '.join(sorted(leaves))} for expert {place.expert} of {place.parameter}; expected lora_A and lora_B. Load it with PEFT."
            raise ConfigError(msg)
        rows = live.shape[1] // place.parts
        rank, scale = _sizes(adapter, place.spelled)
        if (tuple(down.shape), tuple(up.shape)) != ((rank, live.shape[2]), (rows, rank)) or place.expert >= len(live):
            msg = f"The adapter's A {list(down.shape)} and B {list(up.shape)} for expert {place.expert} do not fit {place.parameter} {list(live.shape)}. Load its own backbone."
            raise CheckpointError(msg)
        value = values.setdefault(adapter.names.tensors[place.parameter], live.clone())
        value[place.expert, place.part * rows : (place.part + 1) * rows] += (scale * (up @ down)).to(live.dtype)
    return values


def modules_of(adapter: SavedAdapter) -> set[str]:
    """Return the modules whose parameters have a LoRA of their own."""
    attentions = {module for module in adapter.modules if isinstance(adapter.layer(module), nn.MultiheadAttention)}
    return {
        *targeted_parameters(adapter.config, adapter.names),
        *attentions,
        *(f"{module}.out_proj" for module in attentions),
    }


def targeted_parameters(config: Mapping[str, Any], names: Names) -> dict[str, list[str]]:
    """Return the parameters that `target_parameters` means, by plain name of the module, in the order of the module."""
    targets = config.get("target_parameters") or ()
    ends = tuple(f".{target}" for target in targets)
    found: dict[str, list[str]] = {}
    for name, module in names.modules.items() if targets else ():
        keys = [key for key in module._parameters if f".{name}.{key}".endswith(ends)]
        if keys:
            found[name] = keys
    return found


def _updated(
    adapter: SavedAdapter, name: str, down: Tensor, up: Tensor, key: str = "", times: int = 1
) -> dict[str, Tensor]:
    """Return a parameter with its update.

    Args:
        key: the name that patterns match; by default the parameter's own.
        times: how often the update is added.
    """
    live = _live(adapter, name)
    rank, scale = _sizes(adapter, key or name)
    scale = times * scale
    experts = len(live) if live.dim() == 3 else 1
    turned = live.dim() == 3 and bool(getattr(adapter.layer(name.rpartition(".")[0]), "is_transposed", False))
    sizes = (live.shape[-2], live.shape[-1]) if turned else (live.shape[-1], live.shape[-2])
    if (tuple(down.shape), tuple(up.shape)) != ((rank * experts, sizes[0]), (sizes[1], rank * experts)):
        msg = f"The adapter's A and B for {name} are {list(down.shape)} and {list(up.shape)}, for a parameter {list(live.shape)} and the rank {rank}. Fetch it again."
        raise CheckpointError(msg)
    change: Any = torch.einsum(
        "ore,eri->eio" if turned else "ore,eri->eoi", up.view(-1, rank, experts), down.view(experts, rank, -1)
    )
    change = scale * change.view(live.shape)
    return {adapter.names.tensors[name]: live + change.to(live.dtype)}


def _live(adapter: SavedAdapter, name: str) -> Tensor:
    """Return the backbone's own value of a parameter.

    Raises:
        ConfigError: it has no plain values, or the adapter is more than a plain LoRA.
    """
    config, live = adapter.config, adapter.value(name)
    if live is None or not live.is_floating_point() or live.dtype.itemsize < 2 or live.is_meta:
        msg = f"The adapter's update of {name} needs its values, which this backbone does not hold as plain numbers. Load it with PEFT."
        raise ConfigError(msg)
    if config.get("use_dora") or config.get("lora_bias") or config.get("init_lora_weights") in REBUILT_STARTS:
        msg = f"The adapter acts on the parameter {name} with more than a plain LoRA, which DeltaHub cannot. Load it with PEFT."
        raise ConfigError(msg)
    return live.detach().cpu()


def _sizes(adapter: SavedAdapter, name: str) -> tuple[int, float]:
    """Return the rank and the factor of an update, by the name that patterns match."""
    config, spelled = adapter.config, adapter.spelled(name)
    rank = int(by_pattern(config.get("rank_pattern"), spelled, config.get("r", 8)))
    alpha = float(by_pattern(config.get("alpha_pattern"), spelled, config.get("lora_alpha", 8)))
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
