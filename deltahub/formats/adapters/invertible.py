"""Conversion of an invertible adapter (NICE) behind the embeddings.

`adapters` inverts it only before the heads of its own model classes, which no other model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from deltahub.engine.site import delta_key
from deltahub.formats.adapters.bottleneck import activation_name
from deltahub.formats.adapters.fields import BOTTLENECK, unsupported
from deltahub.formats.adapters.names import Backbone, refuse_others, require_leaves, sorted_leaves

_LAYERS: Final = {"F.0": "F_down", "F.2": "F_up", "G.0": "G_down", "G.2": "G_up"}


def invertible(
    config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert an invertible adapter to options and tensors of a delta.

    Raises:
        ConfigError: it is of another kind, or its place in this model is not known.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    kind, factor = config["inv_adapter"], config.get("inv_adapter_reduction_factor")
    if kind != "nice":
        raise unsupported(BOTTLENECK, "inv_adapter", kind, "expected nice")
    if not isinstance(factor, int | float) or factor < 1:
        raise unsupported(BOTTLENECK, "inv_adapter_reduction_factor", factor, "expected a number from 1 on")
    home = backbone.family.embeddings
    if not home:
        raise unsupported(BOTTLENECK, "inv_adapter", kind, f"its place in a {backbone.model_type} is not known here")
    leaves, others = sorted_leaves(saved, "invertible_adapters", backbone)
    refuse_others(others)
    place = backbone.real(home)
    first, second = backbone.width // 2, backbone.width - backbone.width // 2
    middles = {"F": int(second // factor), "G": int(first // factor)}
    widths = {"F": (second, first), "G": (first, second)}
    shapes: dict[str, tuple[int, ...]] = {}
    for network, (n_in, n_out) in widths.items():
        shapes |= {f"{network}.0.weight": (middles[network], n_in), f"{network}.0.bias": (middles[network],)}
        shapes |= {f"{network}.2.weight": (n_out, middles[network]), f"{network}.2.bias": (n_out,)}
    own = next(iter(leaves.values()), {})
    require_leaves(own, shapes, home)
    options = {
        "delta_type": "invertible_adapter",
        "modified_modules": [place],
        "non_linearity": activation_name(config),
        "reduction_factor": factor,
    }
    tensors = {
        delta_key(place, f"{name}.{leaf}"): own[f"{layer}.{leaf}"]
        for layer, name in _LAYERS.items()
        for leaf in ("weight", "bias")
    }
    return options, tensors
