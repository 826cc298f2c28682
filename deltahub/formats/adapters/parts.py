"""The methods in a config of `adapters`: one, or several that become the parts of a union."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from deltahub.errors import ConfigError
from deltahub.formats.adapters.bottleneck import bottleneck, compacter
from deltahub.formats.adapters.fields import UNION, WAY_OUT, architecture
from deltahub.formats.adapters.invertible import invertible
from deltahub.formats.adapters.low_rank import low_rank
from deltahub.formats.adapters.names import Backbone, refuse_others
from deltahub.formats.adapters.prefix import prefix
from deltahub.formats.adapters.reft import reft

Converted = tuple[dict[str, Any], dict[str, Tensor]]
Reader = Callable[[Mapping[str, Any], Mapping[str, Tensor], Backbone], Converted]


@dataclass(frozen=True)
class _Part:
    """One method of an adapter.

    Attributes:
        read: its reader.
        markers: the dictionaries of `adapters` that hold its tensors.
        config: its fields.
    """

    read: Reader
    markers: tuple[str, ...]
    config: Mapping[str, Any]


_MARKER: Final = re.compile(r"(?:^|\.)(adapters|shared_parameters|loras|prefix_tunings|invertible_adapters|refts)\.")


def convert(config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone) -> Converted:
    """Convert an adapter to options and tensors of a delta.

    Args:
        config: the field `config` of its `adapter_config.json`, checked by `fields`.
        saved: its tensors by key.

    Raises:
        ConfigError: no delta computes the same.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    parts = _parts(config)
    shares: list[dict[str, Tensor]] = [{} for _ in parts]
    others: dict[str, Tensor] = {}
    for key, tensor in saved.items():
        found = _MARKER.search(key)
        index = next((i for i, part in enumerate(parts) if found and found[1] in part.markers), None)
        (others if index is None else shares[index])[key] = tensor
    refuse_others(others)
    converted = [part.read(part.config, share, backbone) for part, share in zip(parts, shares, strict=True)]
    if len(converted) == 1:
        return converted[0]
    tensors = {name: tensor for _, own in converted for name, tensor in own.items()}
    return {
        "delta_type": "union",
        "parts": [{"common_structure": False, **options} for options, _ in converted],
    }, tensors


def _parts(config: Mapping[str, Any]) -> list[_Part]:
    """Return the methods of a config.

    Raises:
        ConfigError: two of them have their tensors in the same place of the file.
    """
    configs = config["configs"] if architecture(config) == UNION else [config]
    parts = [part for each in configs for part in _methods(each)]
    markers = [marker for part in parts for marker in part.markers]
    if len(markers) > len(set(markers)):
        msg = f"The adapter is a union with two methods of one architecture, whose tensors cannot be told apart. {WAY_OUT}"
        raise ConfigError(msg)
    return parts


def _methods(config: Mapping[str, Any]) -> list[_Part]:
    """Return the methods of a config that is not a union: a bottleneck may come with an invertible adapter."""
    kind = architecture(config)
    if kind == "lora":
        return [_Part(low_rank, ("loras",), config)]
    if kind == "prefix_tuning":
        return [_Part(prefix, ("prefix_tunings",), config)]
    if kind == "reft":
        return [_Part(reft, ("refts",), config)]
    methods = [_Part(invertible, ("invertible_adapters",), config)] if config.get("inv_adapter") else []
    if any(config.get(flag) for flag in ("mh_adapter", "output_adapter", "cross_adapter")) or not methods:
        read = compacter if config.get("phm_layer") else bottleneck
        methods.insert(0, _Part(read, ("adapters", "shared_parameters"), config))
    return methods
