"""Conversion of bottlenecks to adapters, parallel adapters and compacters.

    g(h) = s (U act(D h + b_D) + b_U)        D: adapter_down, U: adapter_up, s: scaling

s is multiplied into U and b_U, unless it is fixed and the adapter is parallel, which has an option for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from deltahub.engine.site import delta_key
from deltahub.formats.adapters.fields import BOTTLENECK, unsupported
from deltahub.formats.adapters.names import Backbone, refuse_others, require_leaves
from deltahub.formats.adapters.placement import Bottleneck, at_input, bottlenecks

Converted = tuple[dict[str, Any], dict[str, Tensor]]
_PARTS: Final = {"adapter_down.0": "down_proj", "adapter_up": "up_proj"}
_SAMPLERS: Final = {"adapter_down.0": "down_sampler", "adapter_up": "up_sampler"}


def bottleneck(config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone) -> Converted:
    """Convert bottlenecks to options and tensors of an adapter or a parallel adapter.

    Raises:
        ConfigError: no delta computes the same.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    found, others = bottlenecks(config, saved, backbone)
    refuse_others(others)
    parallel, width = bool(config.get("is_parallel")), backbone.width
    tensors: dict[str, Tensor] = {}
    for each in found:
        shapes = {
            "adapter_down.0.weight": (each.dim, width),
            "adapter_down.0.bias": (each.dim,),
            "adapter_up.weight": (width, each.dim),
            "adapter_up.bias": (width,),
        }
        require_leaves(each.leaves, shapes | _scaling_shape(config, width), each.holder)
        factor = 1.0 if parallel and "scaling" not in each.leaves else _scale(each, config)
        for part, name in _PARTS.items():
            for leaf in ("weight", "bias"):
                value = each.leaves[f"{part}.{leaf}"]
                tensors[delta_key(each.start, f"{name}.{leaf}")] = (
                    _scaled(value, factor) if part == "adapter_up" else value
                )
    dims = {each.start: each.dim for each in found}
    common = Counter(dims.values()).most_common(1)[0][0]
    options = {
        "bottleneck_dim": common,
        "bottleneck_pattern": {name: dim for name, dim in dims.items() if dim != common},
        "non_linearity": activation_name(config),
    }
    if not parallel:
        at = at_input(config, backbone.family)
        return {**options, "delta_type": "adapter", "modified_modules": list(dims), "at_input": at}, tensors
    pairs = [name for each in found for name in (each.start, each.end)]
    scaled = 1.0 if _scaling_shape(config, width) else float(config.get("scaling", 1.0))
    return {**options, "delta_type": "parallel_adapter", "modified_modules": pairs, "scaled": scaled}, tensors


def compacter(config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone) -> Converted:
    """Convert bottlenecks with hypercomplex layers to options and tensors of a compacter.

    Rules that all layers share are in the file once, and in a delta too: at its first module.

    Raises:
        ConfigError: no delta computes the same.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    if config.get("is_parallel"):
        raise unsupported(BOTTLENECK, "phm_layer", True, "a parallel adapter here has no hypercomplex layers")
    found, others = bottlenecks(config, saved, backbone)
    rules = ("phm_rule_left", "phm_rule_right") if config.get("factorized_phm_rule") else ("phm_rule",)
    weights = ("W_left", "W_right") if config.get("factorized_phm_W", True) else ("W",)
    biases = ("b",) if config.get("phm_bias", True) else ()
    shared = bool(config.get("shared_phm_rule", True))
    shared_rules = _shared_rules(others, rules) if shared else {}
    if not shared:
        refuse_others(others)
    tensors: dict[str, Tensor] = {}
    for each in found:
        names = [f"{part}.{leaf}" for part in _SAMPLERS for leaf in (*weights, *biases, *(() if shared else rules))]
        require_leaves(each.leaves, dict.fromkeys(names) | _scaling_shape(config, backbone.width), each.holder)
        factor = _scale(each, config)
        for part, sampler in _SAMPLERS.items():
            for leaf in (*weights, *biases, *(() if shared else rules)):
                value = each.leaves[f"{part}.{leaf}"]
                last = part == "adapter_up" and leaf in (weights[-1], *biases)
                tensors[delta_key(each.end, f"{sampler}.{leaf}")] = _scaled(value, factor) if last else value
    for leaf, value in shared_rules.items():
        tensors[delta_key(found[0].end, f"down_sampler.{leaf}")] = value
    options = {
        "delta_type": "compacter",
        "at_input": at_input(config, backbone.family),
        "factorized_phm": len(weights) == 2,
        "factorized_phm_rule": len(rules) == 2,
        "hypercomplex_division": config.get("phm_dim", 4),
        "learn_phm": bool(config.get("learn_phm", True)),
        "modified_modules": [each.end for each in found],
        "non_linearity": activation_name(config),
        "phm_rank": config.get("phm_rank", 1),
        "reduction_factor": _whole_factor(found, config, backbone.width),
        "shared_phm_rule": shared,
        "use_bias_down_sampler": bool(biases),
        "use_bias_up_sampler": bool(biases),
    }
    return options, tensors


def _shared_rules(others: Mapping[str, Tensor], rules: tuple[str, ...]) -> dict[str, Tensor]:
    """Return the rules that all layers share, and refuse any other tensor."""
    found = {
        name.rpartition(".")[2]: tensor for name, tensor in others.items() if name.startswith("shared_parameters.")
    }
    require_leaves(found, dict.fromkeys(rules), "all layers (shared_phm_rule)")
    refuse_others({name: tensor for name, tensor in others.items() if not name.startswith("shared_parameters.")})
    return found


def _whole_factor(found: list[Bottleneck], config: Mapping[str, Any], width: int) -> int:
    """Return the one whole number that divides the width in every layer.

    Raises:
        ConfigError: there is none.
    """
    dims = {each.dim for each in found}
    factor = width // min(dims)
    if len(dims) > 1 or factor < 1 or width // factor != min(dims):
        reason = "a compacter here has one width, a whole number of times narrower than the hidden state"
        raise unsupported(BOTTLENECK, "reduction_factor", config["reduction_factor"], reason)
    return factor


def _scaling_shape(config: Mapping[str, Any], width: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of a learned scale; empty for a fixed one."""
    scaling = config.get("scaling", 1.0)
    return {"scaling": (width if scaling == "channel" else 1,)} if isinstance(scaling, str) else {}


def _scale(each: Bottleneck, config: Mapping[str, Any]) -> float | Tensor:
    """Return the scale of a bottleneck, learned or fixed.

    Raises:
        ConfigError: hypercomplex layers cannot take up the scale.
    """
    if "scaling" not in each.leaves:
        return float(config.get("scaling", 1.0))
    if config.get("phm_layer") and config["scaling"] == "channel":
        raise unsupported(BOTTLENECK, "scaling", "channel", "hypercomplex layers have no scale for each channel")
    return each.leaves["scaling"]


def _scaled(value: Tensor, factor: float | Tensor) -> Tensor:
    """Multiply the output rows of a matrix or bias of U, or all of one of its factors; 1 leaves every bit."""
    if isinstance(factor, float):
        return value if factor == 1.0 else value * factor
    return value * (factor[:, None] if value.dim() == 2 else factor)


def activation_name(config: Mapping[str, Any]) -> str:
    """Return the activation's name.

    Raises:
        ConfigError: there is no such activation here, or it has parameters.
    """
    from transformers.activations import ACT2FN

    name = str(config.get("non_linearity")).lower()
    if name == "leakyrelu":
        return name
    if name not in ACT2FN or list(ACT2FN[name].parameters()):
        raise unsupported(BOTTLENECK, "non_linearity", config.get("non_linearity"), "this activation is not known here")
    return name
