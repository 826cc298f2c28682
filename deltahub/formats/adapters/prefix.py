"""Conversion of prefix tuning.

The attentions of an encoder, those of a decoder and those from one to the other each have a pool of prefixes. A prefix is computed by a network, [K_1; V_1; K_2; V_2; ...] = W_2 act(W_1 E + b_1) + b_2, or stored as a vector ("flat"). Either way
the delta holds the keys and values themselves. The file repeats the tensors under every attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from deltahub.engine.attention_layers import attentions, key_value_widths
from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError
from deltahub.formats.adapters.fields import unsupported
from deltahub.formats.adapters.names import Backbone, refuse_others, require_leaves, sorted_leaves

Converted = tuple[dict[str, Any], dict[str, Tensor]]
_POOL: Final = "prefix_tuning"


def prefix(config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone) -> Converted:
    """Convert a prefix to options and tensors of a delta.

    Raises:
        ConfigError: no delta computes the same.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    leaves, others = sorted_leaves(saved, "prefix_tunings", backbone)
    refuse_others(others)
    pool = leaves.get(_POOL, {})
    _require_copies(leaves, pool)
    count = config.get("prefix_length", 30)
    tensors: dict[str, Tensor] = {}
    for group, names in prefixed(config, backbone).items():
        own = {leaf.removeprefix(f"{group}."): pool.pop(leaf) for leaf in list(pool) if leaf.startswith(f"{group}.")}
        tensors |= _prefixes(own, names, config, count, backbone)
    refuse_others(pool)
    options = {
        "delta_type": "prefix",
        "modified_modules": [name for names in prefixed(config, backbone).values() for name in names],
        "prefix_token_num": count,
        "reparameterize": False,
    }
    return options | ({"shift_keys": True} if backbone.family.relative_positions else {}), tensors


def _prefixes(
    leaves: Mapping[str, Tensor], names: list[str], config: Mapping[str, Any], count: int, backbone: Backbone
) -> dict[str, Tensor]:
    """Return the keys and values of a group of attentions, under their names in a delta.

    Raises:
        ConfigError: an attention cannot be extended.
        CheckpointError: the tensors do not fit the backbone.
    """
    places = attentions(backbone.model)
    if missing := [name for name in names if name not in places]:
        raise unsupported("prefix_tuning", "prefix_length", count, f"a prefix cannot extend {missing[0]} of this model")
    widths = key_value_widths(backbone.model, {name: places[name] for name in names})
    parts = [width for name in names for width in widths[name]]
    return {
        delta_key(names[index // 2], "past_value" if index % 2 else "past_key"): value.contiguous()
        for index, value in enumerate(torch.split(_rows(leaves, config, count, sum(parts)), parts, dim=1))
    }


def _require_copies(leaves: Mapping[str, Mapping[str, Tensor]], pool: Mapping[str, Tensor]) -> None:
    """Refuse copies under an attention that are not those of the pool, which all attentions share.

    Raises:
        CheckpointError: a copy differs.
    """
    for module, copies in leaves.items():
        for leaf, tensor in copies.items():
            if leaf not in pool or not torch.equal(tensor, pool[leaf]):
                msg = f"The adapter's {leaf} under {module} is not the one that all layers share. Fetch it again."
                raise CheckpointError(msg)


def prefixed(config: Mapping[str, Any], backbone: Backbone) -> dict[str, list[str]]:
    """Return the real names of the attentions that have a prefix, first layer first, by their group."""
    left_out = set(config.get("leave_out") or ())
    groups = {
        group: [
            backbone.real(pattern.replace("*", str(layer)))
            for layer in backbone.layers(pattern)
            if backbone.number(pattern, layer) not in left_out
        ]
        for group, pattern in backbone.family.attentions.items()
        if config.get(group, True)  # encoder_prefix and cross_prefix are also fields
    }
    return {group: names for group, names in groups.items() if names}


@torch.no_grad()
def _rows(leaves: Mapping[str, Tensor], config: Mapping[str, Any], count: int, width: int) -> Tensor:
    """Return the prefixes of all layers, ``(count, width)``.

    Args:
        count: number of places.
        width: total width of the keys and values of all layers.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
        ConfigError: the activation of the network is not tanh.
    """
    if "control_trans" in leaves:  # also after eject_prefix_tuning(), which leaves flat=false in the config
        require_leaves(leaves, {"control_trans": (count * width,)}, _POOL)
        return leaves["control_trans"].view(count, width)
    if str(config.get("non_linearity")).lower() != "tanh":
        raise unsupported("prefix_tuning", "non_linearity", config.get("non_linearity"), "expected tanh")
    middle = config.get("bottleneck_size", 512)
    first, last = "control_trans.0", "control_trans.2"
    shapes = {
        "wte.weight": None,
        f"{first}.weight": None,
        f"{first}.bias": (middle,),
        f"{last}.weight": (width, middle),
        f"{last}.bias": (width,),
    }
    require_leaves(leaves, shapes, _POOL)
    places = leaves["wte.weight"]
    if places.dim() != 2 or len(places) != count or tuple(leaves[f"{first}.weight"].shape) != (middle, places.shape[1]):
        msg = f"The adapter's network does not fit its config: {count} places, bottleneck {middle}. Fetch it again."
        raise CheckpointError(msg)
    hidden = torch.tanh(F.linear(places, leaves[f"{first}.weight"], leaves[f"{first}.bias"]))
    return F.linear(hidden, leaves[f"{last}.weight"], leaves[f"{last}.bias"])
