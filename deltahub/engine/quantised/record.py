"""The description of quantised weights for the record of a backbone, and the values sampled from them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.checkpoint.backbone_record import Fingerprint, Leaf
from deltahub.checkpoint.quantised_weight import Quantisation, QuantisedWeight, sampled_places
from deltahub.engine.modules import module_at
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.quantised.layer import Quantised
from deltahub.engine.quantised.state import is_composed, settings
from deltahub.engine.sharding import is_sharded
from deltahub.files.documents import canonical_json


def quantised_weights(layers: Mapping[str, nn.Module], leaves: Sequence[Leaf]) -> tuple[QuantisedWeight, ...]:
    """Describe each quantised weight of some layers, without reading values.

    Args:
        layers: the layers by name.
        leaves: the leaves of the backbone, sorted.
    """
    names = [leaf.name for leaf in leaves]
    parts_by_layer: dict[str, dict[str, Leaf]] = {}
    for address in sorted(layers):
        prefix = f"{address}." if address else ""
        if any(not outer or prefix.startswith(f"{outer}.") for outer in parts_by_layer):
            continue  # a part of another quantised layer
        start = bisect_left(names, prefix)
        own = leaves[start : bisect_left(names, f"{prefix}\U0010ffff", start)]
        parts_by_layer[address] = {leaf.name.removeprefix(prefix): leaf for leaf in own}
    weights = [
        weight for address, parts in parts_by_layer.items() for weight in _weights_of(address, layers[address], parts)
    ]
    return _without_implied_dtypes(weights, leaves)


def _weights_of(address: str, layer: nn.Module, parts: Mapping[str, Leaf]) -> Iterator[QuantisedWeight]:
    prefix = f"{address}." if address else ""
    options, view = canonical_json(settings(layer)).decode(), quantised(layer)
    wrapped: dict[str, Any] = {key: p for key, p in layer._parameters.items() if is_composed(p)}
    for key, parameter in wrapped.items():
        own = {name: leaf for name, leaf in parts.items() if name.startswith(f"{key}.")}
        shape, method = tuple(parameter.shape), f"{type(parameter).__module__.split('.')[0]} {type(parameter).__name__}"
        kind = Quantisation(method, _bits(own, shape), _name(parameter.dtype), options, tuple(own))
        yield QuantisedWeight(f"{prefix}{key}", shape, kind)
    if wrapped:
        return
    own = {name: leaf for name, leaf in parts.items() if name != "bias"}
    if view is None:
        method = f"{type(layer).__module__.split('.')[0]} {type(layer).__name__}"
        yield QuantisedWeight(f"{prefix}weight", (), Quantisation(method, 0, "", options, tuple(own)))
    else:
        kind = Quantisation(view.name, _bits(own, view.shape), _dtype(layer, view), options, tuple(own))
        yield QuantisedWeight(f"{prefix}weight", view.shape, kind)


def _without_implied_dtypes(weights: Sequence[QuantisedWeight], leaves: Sequence[Leaf]) -> tuple[QuantisedWeight, ...]:
    """Leave out compute dtypes that are those of the backbone's other tensors.

    A layer of bitsandbytes without one takes that of its first input, so that it would have another record afterwards.
    """
    parts = {name for weight in weights for name in weight.part_names}
    counts = Counter(leaf.dtype for leaf in leaves if leaf.name not in parts and leaf.dtype in ("float32", "bfloat16"))
    implied = counts.most_common(1)[0][0] if counts else ""
    kinds = {weight.quantisation for weight in weights}
    renewed = {
        kind: replace(kind, settings=canonical_json({**kind.options, "compute_dtype": None}).decode())
        for kind in kinds
        if implied and kind.options.get("compute_dtype") == implied
    }
    return tuple(sorted(replace(w, quantisation=renewed.get(w.quantisation, w.quantisation)) for w in weights))


def _bits(parts: Mapping[str, Leaf], shape: tuple[int, ...]) -> int:
    """Return the size of the codes, those of the largest part, in bits for each value of a weight."""
    sizes = [math.prod(leaf.shape) * getattr(torch, leaf.dtype).itemsize for leaf in parts.values()]
    return round(8 * max(sizes, default=0) / max(1, math.prod(shape)))


def _dtype(layer: nn.Module, view: Quantised) -> str:
    """Return the dtype that a weight was quantised from, or else the one that its layer computes in."""
    state: Any = getattr(layer._parameters.get("weight"), "quant_state", None) or getattr(layer, "quant_state", None)
    return _name(view.compute_dtype if state is None else state.dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def with_samples(record: Fingerprint, backbone: nn.Module) -> Fingerprint:
    """Return a fingerprint of a backbone with values sampled from each quantised weight that can be read here as a whole."""
    if is_sharded(backbone):
        return record
    weights = tuple(replace(weight, samples=_samples(backbone, weight)) for weight in record.quantised)
    return replace(record, quantised=weights)


def _samples(backbone: nn.Module, weight: QuantisedWeight) -> tuple[float, ...]:
    try:
        values = dequantised(backbone, weight.name)
    except Exception:  # noqa: BLE001  # kernels raise anything, and a trained delta is saved all the same
        return ()
    return sampled(values) if values is not None and tuple(values.shape) == weight.shape else ()


def dequantised(backbone: nn.Module, name: str) -> Tensor | None:
    """Read a quantised weight as floating-point numbers, ``(n_out, n_in)``; None if it cannot be read."""
    address, _, key = name.rpartition(".")
    layer = module_at(backbone, address)
    view = quantised(layer) if key == "weight" else None
    return view.values() if view is not None and not view.fault() else None


def sampled(values: Tensor | None) -> tuple[float, ...]:
    """Return some values of a weight, with four digits; none if it could not be read."""
    if values is None or not values.numel():
        return ()
    places = torch.tensor(sampled_places(values.numel()), device=values.device)
    chosen = values.reshape(-1)[places].float().tolist()
    return tuple(float(f"{value:.4g}") for value in chosen) if all(map(math.isfinite, chosen)) else ()
