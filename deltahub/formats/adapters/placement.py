"""The place of each bottleneck in the backbone.

name there      config                                          place here, g the bottleneck
double_seq_bn   original_ln_before = false     h' = h + g(h)             after the last layer of the branch
seq_bn          true, post-norm                y = LN(z + g(LN(z)))      at the input of the LayerNorm, z = h + x
seq_bn          true, pre-norm                 y = z + g(z)              after the module that returns z
par_bn          is_parallel                    h' = h + g(x)             from the first module that reads x to the last of the branch

h is the output of a branch and x the residual that it is added to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from deltahub.errors import ConfigError
from deltahub.formats.adapters.families import Family, Place
from deltahub.formats.adapters.fields import BOTTLENECK, WAY_OUT, unsupported
from deltahub.formats.adapters.names import Backbone, require_places, sorted_leaves


@dataclass(frozen=True)
class Bottleneck:
    """One bottleneck of a file.

    Attributes:
        flag: the field of the config that puts it there.
        number: the number of its layer in the configs of `adapters`.
        holder: the module of `adapters` that holds it.
        leaves: its tensors.
        dim: its width by the config.
        start: the real name of the module that gives a parallel one its input; else that of `end`.
        end: the real name of the module that it acts on.
    """

    flag: str
    number: int
    holder: str
    leaves: Mapping[str, Tensor]
    dim: int
    start: str
    end: str


def bottlenecks(
    config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone
) -> tuple[list[Bottleneck], dict[str, Tensor]]:
    """Return the bottlenecks of a file, and its other tensors by name relative to the base model.

    Raises:
        ConfigError: no delta has this place.
        CheckpointError: the file has other bottlenecks than the config names.
    """
    leaves, others = sorted_leaves(saved, "adapters", backbone)
    found = [replace(each, leaves=leaves.get(each.holder, {})) for each in places(config, backbone)]
    require_places(set(leaves), {each.holder for each in found})
    return found, others


def places(config: Mapping[str, Any], backbone: Backbone) -> list[Bottleneck]:
    """Return the bottlenecks that a config puts into a backbone, without tensors.

    Raises:
        ConfigError: no delta has this place.
    """
    family, left_out = backbone.family, set(config.get("leave_out") or ())
    found: list[Bottleneck] = []
    for place in family.places:
        if not config.get(place.flag):
            continue
        end = _end(config, place, family)
        for layer in backbone.layers(place.output):
            number = backbone.number(place.output, layer)
            if number in left_out:
                continue
            start = place.start if config.get("is_parallel") else end
            holder, *ends = (name.replace("*", str(layer)) for name in (place.holder, start, end))
            dim, (first, last) = _dim(config, number, backbone), map(backbone.real, ends)
            found.append(Bottleneck(place.flag, number, holder, {}, dim, first, last))
    return found


def at_input(config: Mapping[str, Any], family: Family) -> bool:
    """Return whether the bottlenecks act on the input of a LayerNorm."""
    return bool(family.post_norm and config.get("original_ln_before") and not config.get("is_parallel"))


def _end(config: Mapping[str, Any], place: Place, family: Family) -> str:
    """Return the module that a bottleneck acts on.

    Raises:
        ConfigError: no delta has this place.
    """
    if config.get("is_parallel"):
        return place.output
    residual = config.get("residual_before_ln", True)
    if residual not in (True, False) or (config.get("original_ln_before") and residual is not True):
        reason = "its result is added to another hidden state than an adapter's here"
        raise unsupported(BOTTLENECK, "residual_before_ln", residual, reason)
    if not config.get("original_ln_before"):
        return place.output
    if not place.total:
        reason = "no module of this model returns the sum of the attention and its residual, which the adapter acts on"
        raise unsupported(BOTTLENECK, place.flag, True, reason)
    return place.total


def _dim(config: Mapping[str, Any], number: int, backbone: Backbone) -> int:
    """Return the width of the bottleneck in a layer.

    Raises:
        ConfigError: the config does not say.
    """
    factors = config.get("reduction_factor")
    factor = factors.get(str(number), factors.get("default")) if isinstance(factors, Mapping) else factors
    if factor is None:
        msg = f"The adapter has no reduction_factor for layer {number}. {WAY_OUT}"
        raise ConfigError(msg)
    return max(1, int(backbone.width // factor))
