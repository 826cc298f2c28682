"""Conversion of PEFT's VeRA in both directions: the same tensors, with the shared matrices in the first module here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deltahub.checkpoint.address import exact_addresses
from deltahub.engine.site import delta_key
from deltahub.formats.backbone import Backbone
from deltahub.formats.peft.adalora import refuse_parts
from deltahub.formats.peft.adapter import PROMPTED, Exported, named
from deltahub.formats.peft.low_rank_reading import projections
from deltahub.formats.peft.module_matching import target_names
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter


def read(adapter: SavedAdapter) -> Converted:
    """Convert an adapter; shared matrices that its file does not hold are drawn as PEFT draws them."""
    config, down_up = adapter.config, projections(adapter, "vera", 1)
    widths = {module: adapter.widths(module) for module in adapter.modules}
    n_in, n_out = (max(width) for width in zip(*widths.values(), strict=True))
    found = {
        adapter.names.real[module]: {
            leaf: adapter.leaf(module, leaf).contiguous() for leaf in ("vera_lambda_d", "vera_lambda_b")
        }
        for module in adapter.names.modules  # in the order of the backbone
        if module in widths
    }
    first = found[next(iter(found))]
    first["vera_A"], first["vera_B"] = down_up[0][:, :n_in].contiguous(), down_up[1][:n_out].contiguous()
    addresses = exact_addresses(found, adapter.names.real.values())
    document = {
        "delta_type": "vera",
        "r": len(first["vera_lambda_d"]),
        "d_initial": float(config.get("d_initial", 0.1)),
        "vera_dropout": float(config.get("vera_dropout") or 0.0),
        "projection_prng_key": int(config.get("projection_prng_key") or 0),
        "modified_modules": [addresses[name] for name in sorted(found)],
    }
    return Converted(document, {delta_key(name, leaf): t for name, own in found.items() for leaf, t in own.items()})


def write(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], backbone: Backbone) -> Exported:
    """Convert a VeRA to an adapter that holds the shared matrices.

    Raises:
        ConfigError: it acts on parts of a fused layer.
    """
    refuse_parts("VeRA", shares, "vera_lambda_d")
    owner = next(leaves for leaves in shares.values() if "vera_A" in leaves)
    vectors = {
        f"{module}.{leaf}": leaves[leaf]
        for module, leaves in shares.items()
        for leaf in ("vera_lambda_b", "vera_lambda_d")
    }
    options = {
        "bias": "none",
        "d_initial": document.get("d_initial", 0.1),
        "fan_in_fan_out": any(map(backbone.is_turned, shares)),
        "init_weights": True,
        "projection_prng_key": document.get("projection_prng_key", 0),
        "r": document.get("r", 256),
        "save_projection": True,
        "target_modules": target_names(shares, {*backbone.modules, *shares}),
        "vera_dropout": document.get("vera_dropout", 0.0),
    }
    return Exported(
        "VERA", options, {**named(vectors), **{f"{PROMPTED}{leaf}": owner[leaf] for leaf in ("vera_A", "vera_B")}}
    )
