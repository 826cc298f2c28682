"""Quantisation of a dense weight as a record describes it, to compare the codes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.checkpoint.backbone_record import Leaf
from deltahub.checkpoint.quantised_weight import QuantisedWeight
from deltahub.engine.fingerprint import fingerprint
from deltahub.engine.quantised.record import dequantised


def requantised(
    weight: QuantisedWeight, values: Tensor, leaves: Mapping[str, Leaf]
) -> tuple[dict[str, Leaf], Tensor] | None:
    """Quantise the values of a weight, on their device.

    Args:
        weight: the settings.
        values: ``(n_out, n_in)``.
        leaves: those of the recorded parts, by name.

    Returns:
        The leaves of the parts by their names within a layer, and the dequantised values; None if this quantisation cannot be
        repeated here.
    """
    if not weight.quantisation.method.startswith("bitsandbytes") or find_spec("bitsandbytes") is None:
        return None
    codes = leaves.get(weight.name)
    layer = _layer(weight, values, codes) if codes else None
    if layer is None:
        return None
    renewed = dequantised(layer, "weight")
    return None if renewed is None else ({leaf.name: leaf for leaf in fingerprint(layer).leaves}, renewed)


def _layer(weight: QuantisedWeight, values: Tensor, codes: Leaf) -> nn.Module | None:
    """Build a layer of bitsandbytes with a weight, without its bias."""
    modules: Any = import_module("bitsandbytes.nn")
    dtype: Any = getattr(torch, weight.quantisation.dtype)
    values = values.detach().to(dtype).contiguous()
    options, (n_out, n_in) = weight.quantisation.options, values.shape
    layer: Any
    made: nn.Module
    if "threshold" in options:
        layer = modules.Linear8bitLt(n_in, n_out, bias=False, has_fp16_weights=False, device="meta")
        layer.weight = modules.Int8Params(values, requires_grad=False, has_fp16_weights=False)._quantize(values.device)
        made = layer
        return made
    storage: Any = getattr(torch, codes.dtype)
    layer = modules.Linear4bit(n_in, n_out, bias=False, quant_storage=storage, device="meta")
    layer.weight = modules.Params4bit(
        values,
        requires_grad=False,
        blocksize=options["blocksize"],
        compress_statistics=options["nested"],
        quant_type=options["quant_type"],
        quant_storage=storage,
        module=layer,
    )._quantize(values.device)
    made = layer
    return made
