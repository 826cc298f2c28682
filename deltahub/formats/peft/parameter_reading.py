"""LoRA of PEFT on parameters that no layer of their own computes with.

They become updates of the parameters, and trained tensors of the backbone where a module does not read its parameter itself.

    experts             W_e' = W_e + s B_e A_e        W: (experts, n_out, n_in), or (experts, n_in, n_out) where the layer says so
    MultiheadAttention  W' = W + s B A                W: in_proj_weight (3 width, width)
                        W' = W + 2 s B A              W: the weight of out_proj

Layers of single experts, as in transformers 4, are parts of such a parameter: `expert_names`. The updates of joined parts have the blocks of their B
in one, and zeros elsewhere. PEFT wraps a module once for each of its
parameters, in the order of the module, the first innermost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from deltahub.engine.bypassed import parameter_fault
from deltahub.engine.structure.experts import is_turned_stack
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.expert_names import ExpertPlace
from deltahub.formats.peft.lora_delta import LowRank
from deltahub.formats.peft.lora_starts import REBUILT_STARTS
from deltahub.formats.peft.module_matching import by_pattern
from deltahub.formats.peft.saved_adapter import SavedAdapter
from deltahub.formats.peft.tensor_names import Names


def parameters_of(adapter: SavedAdapter) -> dict[str, LowRank | Tensor]:
    """Return the updates of parameters with a LoRA by plain name, or the new values of parameters by name in the backbone.

    Raises:
        CheckpointError: a tensor is missing or does not fit its parameter.
        ConfigError: DeltaHub cannot write into a parameter.
    """
    found: dict[str, LowRank | Tensor] = {}
    for module, keys in targeted_parameters(adapter.config, adapter.names).items():
        for depth, key in enumerate(reversed(keys)):
            suffix = f"/{depth}" if depth else ""
            down, up = (adapter.leaf(module, f"lora_{side}{suffix}") for side in "AB")
            name = f"{module}.{key}".lstrip(".")
            found |= _placed(adapter, name, _of_parameter(adapter, name, down, up))
    for module in adapter.modules:
        if isinstance(adapter.layer(module), nn.MultiheadAttention):
            inner = f"{module}.out_proj"
            # PEFT merges the update of out_proj twice, in training too.
            for layer, name, times in ((module, f"{module}.in_proj_weight", 1), (inner, f"{inner}.weight", 2)):
                down, up = adapter.leaf(layer, "lora_A"), adapter.leaf(layer, "lora_B")
                update = _of_parameter(adapter, name, down, up, module, times)
                found[adapter.names.tensors[name]] = _value(adapter, name, update)
    return found | _of_experts(adapter)


def _placed(adapter: SavedAdapter, name: str, update: LowRank) -> dict[str, LowRank | Tensor]:
    """Return the update of a parameter, or its new value where the module does not read it itself."""
    module, _, key = name.rpartition(".")
    if parameter_fault(adapter.layer(module), key):
        return {adapter.names.tensors[name]: _value(adapter, name, update)}
    turned = is_turned_stack(adapter.layer(module), key)
    if turned != _is_turned_in_peft(adapter.layer(module), key):
        update = replace(update, down=update.up.mT, up=update.down.mT)
    return {name: replace(update, parameter=key)}


def _is_turned_in_peft(layer: nn.Module, key: str) -> bool:
    parameter = layer._parameters[key]
    return parameter is not None and parameter.dim() == 3 and bool(getattr(layer, "is_transposed", False))


def _of_experts(adapter: SavedAdapter) -> dict[str, LowRank | Tensor]:
    """Return the updates of stacked parameters whose experts were layers of their own."""
    found: dict[str, LowRank | Tensor] = {}
    places: dict[str, list[ExpertPlace]] = {}
    for place in adapter.experts:
        places.setdefault(place.parameter, []).append(place)
    for name, parts in places.items():
        pairs = {(place.expert, place.part): _of_expert(adapter, place) for place in parts}
        found |= _placed(adapter, name, _stacked(_live(adapter, name), pairs, parts[0].parts))
    return found


def _of_expert(adapter: SavedAdapter, place: ExpertPlace) -> LowRank:
    """Read the update of a layer of one expert."""
    leaves = adapter.experts[place]
    down, up, live = leaves.get("lora_A"), leaves.get("lora_B"), _live(adapter, place.parameter)
    if down is None or up is None or len(leaves) != 2:
        msg = f"The adapter has {', '.join(sorted(leaves))} for expert {place.expert} of {place.parameter}; expected lora_A and lora_B. Load it with PEFT."
        raise ConfigError(msg)
    rank, scale = _sizes(adapter, place.spelled)
    shapes = (rank, live.shape[2]), (live.shape[1] // place.parts, rank)
    if (tuple(down.shape), tuple(up.shape)) != shapes or place.expert >= len(live):
        msg = f"The adapter's A {list(down.shape)} and B {list(up.shape)} for expert {place.expert} do not fit {place.parameter} {list(live.shape)}. Load its own backbone."
        raise CheckpointError(msg)
    return LowRank(down, up, scale)


def _stacked(live: Tensor, pairs: Mapping[tuple[int, int], LowRank], parts: int) -> LowRank:
    """Join the updates of single experts, and of the joined parts of each, into one of the whole stack.

    Args:
        live: the parameter, ``(experts, n_out, n_in)``.
        pairs: by expert and part.
        parts: the number of parts with equal shares of n_out.
    """
    ranks = [max((pair.rank for (_, p), pair in pairs.items() if p == part), default=0) for part in range(parts)]
    starts = [sum(ranks[:part]) for part in range(parts)]
    rows, scale = live.shape[1] // parts, next(iter(pairs.values())).scale
    first = next(iter(pairs.values()))
    down = first.down.new_zeros(len(live), sum(ranks), live.shape[2])
    up = first.up.new_zeros(len(live), live.shape[1], sum(ranks))
    for (expert, part), pair in pairs.items():
        columns = slice(starts[part], starts[part] + pair.rank)
        down[expert, columns] = pair.down
        factor = 1.0 if pair.scale == scale else pair.scale / scale
        up[expert, part * rows : (part + 1) * rows, columns] = factor * pair.up
    return LowRank(down, up, scale)


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


def _of_parameter(adapter: SavedAdapter, name: str, down: Tensor, up: Tensor, key: str = "", times: int = 1) -> LowRank:
    """Read the update of a parameter, with A and B of a stack as ``(experts, r, n_in)`` and ``(experts, n_out, r)``.

    Args:
        key: the name that patterns match; by default the parameter's own.
        times: how often the update is added.
    """
    live = _live(adapter, name)
    rank, scale = _sizes(adapter, key or name)
    experts = len(live) if live.dim() == 3 else 1
    module, _, leaf = name.rpartition(".")
    turned = _is_turned_in_peft(adapter.layer(module), leaf)
    sizes = (live.shape[-2], live.shape[-1]) if turned else (live.shape[-1], live.shape[-2])
    if (tuple(down.shape), tuple(up.shape)) != ((rank * experts, sizes[0]), (sizes[1], rank * experts)):
        msg = f"The adapter's A and B for {name} are {list(down.shape)} and {list(up.shape)}, for a parameter {list(live.shape)} and the rank {rank}. Fetch it again."
        raise CheckpointError(msg)
    if live.dim() == 3:
        down, up = down.view(experts, rank, -1), up.view(-1, rank, experts).permute(2, 0, 1)
    return LowRank(down, up, times * scale)


def _value(adapter: SavedAdapter, name: str, update: LowRank) -> Tensor:
    """Return a parameter with its update."""
    module, _, key = name.rpartition(".")
    live, change = _live(adapter, name), update.scale * (update.up @ update.down)
    change = change.mT if _is_turned_in_peft(adapter.layer(module), key) else change
    return live + change.to(live.dtype)


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
