"""Conversion of an AdapterFusion with its adapters, which `adapters` saves in folders of their own.

    bert.encoder.layer.0.output.adapter_fusion_layer.a,b,c.query.weight        the attention at one place, over the adapters a, b and c

The adapters are looked for in the folder of the fusion and beside it, by the names in their configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from deltahub.engine.site import delta_key
from deltahub.errors import ConfigError, DeltaHubError
from deltahub.files.documents import shown
from deltahub.formats.adapters.fields import WAY_OUT, check_fields, check_release, unsupported
from deltahub.formats.adapters.names import Backbone, refuse_others, require_leaves, require_places, sorted_leaves
from deltahub.formats.adapters.parts import convert
from deltahub.formats.adapters.placement import at_input, places
from deltahub.formats.files import read_config

CONFIG: Final = "adapter_fusion_config.json"
WEIGHTS: Final = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
_MEMBER: Final = "adapter_config.json"
# Fields with the values that change no output here; those of the projections may have any.
_FIELDS: Final[Mapping[str, tuple[Any, ...]]] = {
    "dropout_prob": (),
    "key": (),
    "query": (),
    "query_before_ln": (False,),
    "regularization": (),  # of the training, as is the initialisation
    "residual_before": (False,),
    "temperature": (False,),  # which would fall with every call
    "value": (),
    "value_before_softmax": (),  # the mean of products is the product of the mean
    "value_initialized": (),
}


@dataclass(frozen=True)
class Member:
    """An adapter in a fusion.

    Attributes:
        folder: its folder.
        document: its `adapter_config.json`.
    """

    folder: Path
    document: Mapping[str, Any]


def members_of(folder: Path) -> tuple[Mapping[str, Any], list[Member]]:
    """Read the config of a fusion, and find its adapters.

    Raises:
        ConfigError: a field is not supported, or an adapter is not there.
    """
    document = read_config(folder / CONFIG, "adapters_config.v1")
    check_release(document)
    for key, value in document["config"].items():
        values = _FIELDS.get(key, (None, False))
        if values and value not in values:
            raise unsupported("fusion", key, value, f"expected {shown(values[0])}")
    names = document.get("adapter_names") or str(document.get("name", "")).split(",")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        msg = f"{folder / CONFIG} has adapter_names={shown(names)}; expected the names of the adapters in the fusion. Fetch it again."
        raise ConfigError(msg)
    found: dict[str, Member] = {}
    for place in (*sorted(folder.iterdir()), *sorted(folder.parent.iterdir())):
        with suppress(DeltaHubError):  # a folder beside the fusion may hold anything
            member = Member(place, read_config(place / _MEMBER, "adapters_config.v1"))
            found.setdefault(str(member.document.get("name")), member)
    if missing := next((name for name in names if name not in found), None):
        msg = f"The fusion in {folder} is over the adapters {', '.join(names)}, and {missing} is neither in it nor beside it. Put its folder there."
        raise ConfigError(msg)
    return document, [found[name] for name in names]


def fusion(
    document: Mapping[str, Any],
    saved: Mapping[str, Tensor],
    members: Sequence[tuple[Mapping[str, Any], Mapping[str, Tensor]]],
    backbone: Backbone,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a fusion to options and tensors of a delta.

    Args:
        document: its config.
        saved: the tensors of its attention.
        members: the config and the tensors of each adapter.

    Raises:
        ConfigError: no delta computes the same.
        CheckpointError: a file is damaged, or does not fit the backbone.
    """
    config = document["config"]
    parts, tensors, homes = _members(members, backbone)
    leaves, others = sorted_leaves(saved, "adapter_fusion_layer", backbone)
    refuse_others(others)
    require_places(set(leaves), set(homes))
    width = backbone.width
    shapes: dict[str, tuple[int, ...]]
    shapes = {f"{side}.weight": (width, width) for side in ("query", "key", "value") if config.get(side, True)}
    shapes |= {f"{side}.bias": (width,) for side in ("query", "key") if config.get(side, True)}
    if not any(config.get(side, True) for side in ("query", "key", "value")):
        raise unsupported("fusion", "query", False, "a fusion without any projection has other tensors")
    for holder, own in leaves.items():
        require_leaves(own, shapes, holder)
        tensors |= {
            delta_key(homes[holder], "value" if leaf == "value.weight" else leaf): tensor
            for leaf, tensor in own.items()
        }
    model_config = getattr(backbone.model, "config", None)
    dropout = config.get("dropout_prob") or getattr(model_config, "attention_probs_dropout_prob", 0.0)
    sides = {side: bool(config.get(side, True)) for side in ("query", "key", "value")}
    return {"delta_type": "fusion", "parts": parts, "dropout": float(dropout), **sides}, tensors


def _members(
    members: Sequence[tuple[Mapping[str, Any], Mapping[str, Tensor]]], backbone: Backbone
) -> tuple[list[dict[str, Any]], dict[str, Tensor], dict[str, str]]:
    """Convert the adapters, and return their options, their tensors by name in the fusion, and their modules here by those there.

    Raises:
        ConfigError: one is not a sequential bottleneck.
    """
    parts: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    counts: dict[str, int] = {}
    for document, saved in members:
        check_fields(document)
        config = document["config"]
        options, own = convert(config, saved, backbone)
        if options["delta_type"] not in ("adapter", "compacter"):
            msg = f"The fusion is over {document.get('name')}, a {options['delta_type']} here, where DeltaHub fuses sequential adapters only. {WAY_OUT}"
            raise ConfigError(msg)
        parts.append({"common_structure": False, **options})
        acting = {each.end: each.holder for each in places(config, backbone)}
        homes |= {holder: end for end, holder in acting.items()}
        for name, tensor in own.items():
            address, _, leaf = name.partition(".deltas.")
            tensors[delta_key(address, f"members.{counts.get(address, 0)}.{leaf}")] = tensor
        for address in acting:
            counts[address] = counts.get(address, 0) + 1
    if len({at_input(document["config"], backbone.family) for document, _ in members}) > 1:
        msg = f"The fusion is over adapters before and behind a LayerNorm, which no delta here fuses. {WAY_OUT}"
        raise ConfigError(msg)
    return parts, tensors, homes
