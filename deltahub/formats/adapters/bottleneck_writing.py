"""Writing of adapters, parallel adapters and compacters as bottlenecks of `adapters`: the reverse of `bottleneck`.

A bottleneck of `adapters` is in every layer but those of `leave_out`, at the places that its config switches on, so a delta has an
equivalent if its modules are such places. A layer has one width: zeros fill up a narrower bottleneck in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch import Tensor

from deltahub.errors import ConfigError
from deltahub.formats.adapters.names import Backbone
from deltahub.formats.adapters.placement import Bottleneck, at_input, places
from deltahub.formats.delta_tensors import Shares, of_width, require_bottlenecks, require_leaves, unshared

Written = tuple[dict[str, Any], dict[str, Tensor]]  # config, tensors by name relative to the base model
NAME: Final = "delta"  # of the adapter; load_adapter(..., load_as=...) gives it another
KEEP: Final = "Keep it in DeltaHub's own format."
_FLAGS: Final = ("mh_adapter", "output_adapter", "cross_adapter")
_PARTS: Final = {"down_proj": "adapter_down.0", "up_proj": "adapter_up"}
_SAMPLERS: Final = {"down_sampler": "adapter_down.0", "up_sampler": "adapter_up"}
# Activations of transformers 4.57, on which `adapters` 1.3 depends, and one of its own.
_ACTIVATIONS: Final = frozenset(
    {
        "gelu",
        "gelu_10",
        "gelu_accurate",
        "gelu_fast",
        "gelu_new",
        "gelu_python",
        "gelu_python_tanh",
        "gelu_pytorch_tanh",
        "laplace",
        "leaky_relu",
        "leakyrelu",
        "linear",
        "mish",
        "quick_gelu",
        "relu",
        "relu2",
        "relu6",
        "sigmoid",
        "silu",
        "swish",
        "tanh",
    }
)
_DEFAULTS: Final[Mapping[str, Any]] = {
    "adapter_residual_before_ln": False,
    "cross_adapter": False,
    "dropout": 0.0,
    "factorized_phm_W": True,
    "factorized_phm_rule": False,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "is_parallel": False,
    "learn_phm": True,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "original_ln_after": True,
    "original_ln_before": False,
    "output_adapter": False,
    "phm_bias": True,
    "phm_c_init": "normal",
    "phm_dim": 4,
    "phm_init_range": 0.0001,
    "phm_layer": False,
    "phm_rank": 1,
    "residual_before_ln": True,
    "scaling": 1.0,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "stochastic_depth": 0.0,
    "use_gating": False,
}


def adapter(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Written:
    """Return the config and the tensors of an adapter.

    Raises:
        ConfigError: `adapters` has no such place.
        CheckpointError: the tensors are not those that the config announces.
    """
    activation = _activation(document)
    require_bottlenecks(shares)
    config, found = _placed({name: name for name in shares}, _DEFAULTS, document, backbone)
    return _with_widths({**config, "non_linearity": activation}, found, shares, backbone)


def parallel_adapter(
    document: Mapping[str, Any], shares: Shares, spans: Mapping[str, str], backbone: Backbone
) -> Written:
    """Return the config and the tensors of a parallel adapter.

    Args:
        spans: the first module of each to the last.

    Raises:
        ConfigError: `adapters` has no such place.
        CheckpointError: the tensors are not those that the config announces.
    """
    activation = _activation(document)
    require_bottlenecks(shares)
    scaling = float(document.get("scaled", 1.0))
    base = {**_DEFAULTS, "init_weights": "mam_adapter", "is_parallel": True, "scaling": scaling}
    config, found = _placed(spans, base, document, backbone)
    return _with_widths({**config, "non_linearity": activation}, found, shares, backbone)


def compacter(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Written:
    """Return the config and the tensors of a compacter.

    Raises:
        ConfigError: `adapters` has no such place.
        CheckpointError: the tensors are not those that the config announces.
    """
    rules = {"phm_rule_left", "phm_rule_right"} if document.get("factorized_phm_rule") else {"phm_rule"}
    weights = {"W_left", "W_right"} if document.get("factorized_phm", True) else {"W"}
    biased = [way for way in ("down", "up") if document.get(f"use_bias_{way}_sampler", True)]
    whole = unshared(document, shares, rules, weights)
    expected = {f"{way}_sampler.{leaf}" for way in ("down", "up") for leaf in (*rules, *weights)}
    require_leaves(whole, expected | {f"{way}_sampler.b" for way in biased})
    shared = bool(document.get("shared_phm_rule", False))
    base = {
        **_DEFAULTS,
        "factorized_phm_W": len(weights) == 2,
        "factorized_phm_rule": len(rules) == 2,
        "hypercomplex_nonlinearity": document.get("hypercomplex_nonlinearity", "glorot-uniform"),
        "learn_phm": document.get("learn_phm", True),
        "phm_bias": bool(biased),
        "phm_c_init": document.get("phm_c_init", "normal"),
        "phm_dim": document.get("hypercomplex_division", 4),
        "phm_init_range": document.get("phm_init_range", 0.0001),
        "phm_layer": True,
        "phm_rank": document.get("phm_rank", 1),
        "shared_phm_rule": shared,
    }
    config, found = _placed({name: name for name in shares}, base, document, backbone)
    dim = backbone.width // int(document.get("reduction_factor", 16))
    widths = {"down_sampler": dim, "up_sampler": backbone.width}
    tensors: dict[str, Tensor] = {}
    for each in found:
        own = whole[each.end]
        for sampler, part in _SAMPLERS.items():
            leaves = {leaf: own[f"{sampler}.{leaf}"] for leaf in (*weights, *(() if shared else rules))}
            if biased:  # there both projections have a bias, or none
                first = own[f"{sampler}.{min(weights)}"]
                leaves["b"] = own.get(f"{sampler}.b", first.new_zeros(widths[sampler]))
            tensors |= {f"{each.holder}.adapters.{NAME}.{part}.{leaf}": value for leaf, value in leaves.items()}
    first_own = whole[found[0].end]
    if shared:
        tensors |= {f"shared_parameters.{NAME}.{rule}": first_own[f"down_sampler.{rule}"] for rule in rules}
    factor = float(document.get("reduction_factor", 16))
    return {**config, "non_linearity": _activation(document), "reduction_factor": factor}, tensors


def _placed(
    spans: Mapping[str, str], base: Mapping[str, Any], document: Mapping[str, Any], backbone: Backbone
) -> tuple[dict[str, Any], list[Bottleneck]]:
    """Return a config that puts bottlenecks into these spans alone, and its bottlenecks.

    Args:
        base: the config without the fields that say where.

    Raises:
        ConfigError: there is none.
    """
    wanted = {*spans.items()}
    for config in _candidates(base, document, backbone):
        found = [each for flag in _FLAGS for each in _at(flag, config, backbone)]
        flags = {each.flag for each in found if (each.start, each.end) in wanted}
        of_flags = [each for each in found if each.flag in flags]
        left_out = {each.number for each in of_flags if (each.start, each.end) not in wanted}
        chosen = [each for each in of_flags if each.number not in left_out]
        if {(each.start, each.end) for each in chosen} == wanted:
            where = {flag: flag in flags for flag in _FLAGS}
            return {**config, **where, "leave_out": sorted(left_out)}, chosen
    first = min(wanted)
    msg = (
        f"The {document['delta_type']} acts on {first[1]} and others, {len(wanted)} modules in all. adapters puts its modules behind attention, "
        f"behind the feed-forward or behind both, in all layers but some, and no such choice is these modules of a {backbone.model_type}. {KEEP}"
    )
    raise ConfigError(msg)


def _candidates(base: Mapping[str, Any], document: Mapping[str, Any], backbone: Backbone) -> Iterator[dict[str, Any]]:
    """Yield the configs whose bottlenecks act on the input of a LayerNorm, or do not, as the delta's do."""
    for before in (False,) if base["is_parallel"] else (False, True):
        config = {**base, "original_ln_before": before}
        if at_input(config, backbone.family) == bool(document.get("at_input")):
            yield config


def _at(flag: str, config: Mapping[str, Any], backbone: Backbone) -> list[Bottleneck]:
    """Return the bottlenecks that one field puts into the backbone; none where no delta has the place."""
    try:
        return places({**config, "reduction_factor": 1, flag: True}, backbone)
    except ConfigError:
        return []


def _with_widths(config: Mapping[str, Any], found: list[Bottleneck], shares: Shares, backbone: Backbone) -> Written:
    """Add the widths to a config, and return it with the tensors."""
    dims: dict[int, int] = {}
    for each in found:
        dims[each.number] = max(dims.get(each.number, 0), shares[each.start]["down_proj.weight"].shape[0])
    common = Counter(dims.values()).most_common(1)[0][0]
    factors = {str(number): _factor(dim, backbone) for number, dim in dims.items() if dim != common}
    default = _factor(common, backbone)
    tensors: dict[str, Tensor] = {}
    for each in found:
        for leaf, tensor in of_width(shares[each.start], dims[each.number]).items():
            layer, _, kind = leaf.rpartition(".")
            tensors[f"{each.holder}.adapters.{NAME}.{_PARTS[layer]}.{kind}"] = tensor
    widths = {"reduction_factor": {**factors, "default": default} if factors else default}
    return {**config, **widths}, tensors


def _factor(dim: int, backbone: Backbone) -> float:
    """Return a number by which `adapters` divides the width of the hidden state, rounding down, to get `dim`."""
    exact = backbone.width / dim
    return exact if int(backbone.width // exact) == dim else backbone.width / (dim + 0.5)


def _activation(document: Mapping[str, Any]) -> str:
    """Return the name of the activation in `adapters`.

    Raises:
        ConfigError: it has no such activation.
    """
    name = str(document.get("non_linearity", "gelu_new"))
    name = "gelu" if name == "gelu_orig" else name
    if name not in _ACTIVATIONS:
        msg = f"The transformers of adapters 1.3 does not have the activation {name}; it has {', '.join(sorted(_ACTIVATIONS))}. {KEEP}"
        raise ConfigError(msg)
    return name
