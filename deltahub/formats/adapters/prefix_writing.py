"""Writing of a prefix as a flat one of `adapters`: the reverse of `prefix`. A network is evaluated, since ours and theirs have other widths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from deltahub.engine.attention_layers import attentions, key_value_widths
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.adapters.bottleneck_writing import KEEP, NAME, Written
from deltahub.formats.adapters.names import Backbone
from deltahub.formats.adapters.prefix import prefixed
from deltahub.formats.delta_tensors import Shares, prefixed_attentions, require_leaves


def prefix(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Written:
    """Return the config and the tensors of a prefix.

    Raises:
        ConfigError: `adapters` has no equivalent.
        CheckpointError: the tensors are not those that the config announces.
    """
    family = backbone.family
    if document.get("shift_positions") or (family.relative_positions and not document.get("shift_keys")):
        msg = f"The prefix of adapters counts the positions of the text in another way than this one (shift_positions, shift_keys). {KEEP}"
        raise ConfigError(msg)
    names = prefixed_attentions(document, backbone.model)
    config = _config(names, backbone)
    values = _values(document, shares, names, backbone)
    tensors = {}
    for group, own in prefixed(config, backbone).items():
        rows = torch.cat([value for name in own for value in values[name]], dim=1)
        config["prefix_length"] = len(rows)
        tensors[f"prefix_tuning.prefix_tunings.{NAME}.{group}.control_trans"] = rows.flatten()
    return config, tensors


def _config(names: list[str], backbone: Backbone) -> dict[str, Any]:
    """Return a config that puts prefixes on these attentions alone, without the length.

    Raises:
        ConfigError: there is none.
    """
    patterns = backbone.family.attentions
    places = {
        group: {backbone.real(p.replace("*", str(n))): backbone.number(p, n) for n in backbone.layers(p)}
        for group, p in patterns.items()
    }
    config: dict[str, Any] = {
        "architecture": "prefix_tuning",
        "bottleneck_size": 512,
        "cross_prefix": True,
        "dropout": 0.0,
        "encoder_prefix": True,
        "flat": True,
        "init_weights_seed": None,
        "leave_out": [],
        "non_linearity": "tanh",
        "shared_gating": True,
        "use_gating": False,
    }
    config |= {group: any(name in names for name in own) for group, own in places.items() if group in config}
    used = [own for group, own in places.items() if config.get(group, True)]
    config["leave_out"] = sorted({number for own in used for name, number in own.items() if name not in names})
    found = [name for own in prefixed(config, backbone).values() for name in own]
    if sorted(found) != sorted(names):
        msg = (
            f"The prefix is at {names[0]} and others, {len(names)} attentions in all. adapters puts one into every attention of a kind, in all "
            f"layers but some, and no such choice is these attentions of a {backbone.model_type}. {KEEP}"
        )
        raise ConfigError(msg)
    return config


@torch.no_grad()
def _values(
    document: Mapping[str, Any], shares: Shares, names: list[str], backbone: Backbone
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the keys and values of each attention, each ``(places, width)``.

    Raises:
        ConfigError: they have other widths than `adapters` takes by the config.
        CheckpointError: tensors are missing.
    """
    places = attentions(backbone.model)
    widths = key_value_widths(backbone.model, {name: places[name] for name in names})
    model_config: Any = backbone.model.config
    heads = getattr(model_config, "num_key_value_heads", None) or model_config.num_attention_heads
    width = heads * (getattr(model_config, "d_kv", None) or backbone.width // model_config.num_attention_heads)
    if odd := next((name for name in names if widths[name] != (width, width)), None):
        msg = f"The keys and values of {odd} are {widths[odd][0]} and {widths[odd][1]} wide, and adapters takes them for {width}. {KEEP}"
        raise ConfigError(msg)
    if not document.get("reparameterize", True):
        require_leaves(shares, {"past_key", "past_value"})
        if shares.keys() != set(names):
            msg = f"The delta has prefixes for {len(shares)} attentions, and its config means {len(names)}. Save the delta again."
            raise CheckpointError(msg)
        return {name: (shares[name]["past_key"], shares[name]["past_value"]) for name in names}
    first, last = "reparams.control_trans.0", "reparams.control_trans.2"
    layers = {f"{layer}.{leaf}" for layer in (first, last) for leaf in ("weight", "bias")}
    require_leaves(shares, {"reparams.wte.weight", *layers})
    own = next(iter(shares.values()))
    hidden = torch.tanh(F.linear(own["reparams.wte.weight"], own[f"{first}.weight"], own[f"{first}.bias"]))
    parts = torch.split(F.linear(hidden, own[f"{last}.weight"], own[f"{last}.bias"]), width, dim=1)
    return {name: (parts[2 * index], parts[2 * index + 1]) for index, name in enumerate(names)}
