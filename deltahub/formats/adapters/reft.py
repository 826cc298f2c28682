"""Conversion of ReFT: LoReFT, NoReFT and DiReFT, whose matrices are behind each layer.

`adapters` keeps an orthonormal R in the form of torch's parametrization, which gives R here. It does not save whether R h is subtracted,
and loads every DiReFT as a NoReFT; so does this reader, with a warning. The parametrization truncates a diagonal that it takes for
1 or -1, so that weight decay gives rows of zeros in R: such a file becomes a NoReFT with the same R.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError
from deltahub.formats.adapters.bottleneck import activation_name
from deltahub.formats.adapters.fields import unsupported
from deltahub.formats.adapters.low_rank import NUMBER
from deltahub.formats.adapters.names import Backbone, refuse_others, require_leaves, require_places, sorted_leaves
from deltahub.log import LOGGER

_ORTHOGONAL: Final = "projection.parametrizations.weight"
_AMBIGUOUS: Final = (
    "adapters saves a NoReFT and a DiReFT alike, and loads both as a NoReFT, which this one is taken for. If it is a DiReFT, load it with "
    "subtract_projection=False."
)
_BROKEN: Final = (
    "In this LoReFT some rows of R are zero, because weight decay moved a part of its parametrization. It is loaded with the same outputs, "
    "and trains on as a NoReFT."
)


def reft(
    config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a ReFT to options and tensors of a delta.

    Raises:
        ConfigError: no delta computes the same.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    if not config.get("output_reft", True):
        raise unsupported("reft", "output_reft", False, "expected true: its place is behind the layers")
    orthogonal, tied = bool(config.get("orthogonality", True)), bool(config.get("tied_weights"))
    if not orthogonal:
        LOGGER.warning(_AMBIGUOUS)
    first, last, rank = (int(config.get(key) or 0) for key in ("prefix_positions", "suffix_positions", "r"))
    leaves, others = sorted_leaves(saved, "reft_layer.refts", backbone)
    refuse_others(others)
    _require_layers(config, set(leaves), backbone)
    units = {0: "prefix"} if tied else {0: "prefix", 1: "suffix"}
    acting = {0: bool(first or tied), 1: bool(last)}
    tensors: dict[str, Tensor] = {}
    for module, own in sorted(leaves.items()):
        require_leaves(
            own,
            {leaf: shape for number in units for leaf, shape in _shapes(number, rank, orthogonal, backbone)},
            module,
        )
        for number, name in units.items():
            if acting[number]:
                tensors |= _unit(own, f"units.{number}", delta_key(backbone.real(module), name), orthogonal)
    if orthogonal and not all(
        _is_orthonormal(tensor) for key, tensor in tensors.items() if key.endswith(".projection")
    ):
        LOGGER.warning(_BROKEN)
        orthogonal = False
    options = {
        "delta_type": "reft",
        "dropout": float(config.get("dropout") or 0.0),
        "modified_modules": sorted(map(backbone.real, leaves)),
        "non_linearity": None if config.get("non_linearity") is None else activation_name(config),
        "orthogonality": orthogonal,
        "prefix_positions": first,
        "r": rank,
        "suffix_positions": last,
        "tied_weights": tied,
    }
    return options, tensors


def _shapes(number: int, rank: int, orthogonal: bool, backbone: Backbone) -> list[tuple[str, tuple[int, ...]]]:
    width, unit = backbone.width, f"units.{number}"
    projection = (
        [(f"{unit}.{_ORTHOGONAL}.original", (rank, width)), (f"{unit}.{_ORTHOGONAL}.0.base", (width, width))]
        if orthogonal
        else [(f"{unit}.projection.weight", (rank, width))]
    )
    return [*projection, (f"{unit}.learned_source.weight", (rank, width)), (f"{unit}.learned_source.bias", (rank,))]


def _unit(own: Mapping[str, Tensor], unit: str, key: str, orthogonal: bool) -> dict[str, Tensor]:
    """Convert the tensors of one unit.

    Args:
        key: the first part of their names here.
    """
    return {
        f"{key}.projection": _orthonormal(own, unit) if orthogonal else own[f"{unit}.projection.weight"],
        f"{key}.source": own[f"{unit}.learned_source.weight"],
        f"{key}.bias": own[f"{unit}.learned_source.bias"],
    }


@torch.no_grad()
def _orthonormal(own: Mapping[str, Tensor], unit: str) -> Tensor:
    """Compute the rows of R, as torch's parametrization does."""
    original, base = own[f"{unit}.{_ORTHOGONAL}.original"], own[f"{unit}.{_ORTHOGONAL}.0.base"]
    layer: nn.Module = nn.Linear(original.shape[1], len(original), bias=False, dtype=original.dtype)
    layer = nn.utils.parametrizations.orthogonal(layer)
    layer.load_state_dict({"parametrizations.weight.original": original, "parametrizations.weight.0.base": base})
    return cast("Tensor", layer.weight).clone()


def _is_orthonormal(rows: Tensor) -> bool:
    return bool((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).abs().max() < 1e-4)


def _require_layers(config: Mapping[str, Any], found: set[str], backbone: Backbone) -> None:
    """Refuse a file with ReFT behind other layers than its config names.

    Raises:
        ConfigError: the config names them in a way that is not known.
        CheckpointError: a layer is missing or not expected.
    """
    layers = config.get("layers", "all")
    if layers != "all" and not isinstance(layers, list):
        raise unsupported("reft", "layers", layers, 'expected "all" or a list of numbers')
    if absent := sorted(found - backbone.modules.keys()):
        msg = f"The adapter sits on {absent[0]}, which this {type(backbone.model).__name__} does not have. Load its own backbone."
        raise CheckpointError(msg)
    left_out = set(config.get("leave_out") or ())
    patterns = {NUMBER.sub("*", f"{module}.", count=1).removesuffix(".") for module in found}
    expected = {
        pattern.replace("*", str(layer))
        for pattern in patterns
        for layer in backbone.layers(pattern)
        for number in [backbone.number(pattern, layer)]
        if number not in left_out and (layers == "all" or number in layers)
    }
    require_places(found, expected or {"its layers"})
