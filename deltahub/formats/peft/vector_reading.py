"""Methods of PEFT that train vectors: IA3, LayerNorm tuning, and BEFT, whose biases become a BitFit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from deltahub.engine.site import delta_key
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.module_matching import at_input
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter
from deltahub.formats.peft.saved_modules import own_values


def ia3(adapter: SavedAdapter) -> Converted:
    """Convert IA3."""
    names, vectors = adapter.names, {module: vector for (module, _), vector in adapter.leaves.items()}
    for module, vector in vectors.items():
        if vector.dim() != 2 or 1 not in vector.shape:
            msg = f"The adapter's vector for {module} is {list(vector.shape)}, which is not that of a linear layer. Load it with PEFT."
            raise ConfigError(msg)
    options = {
        "delta_type": "ia3",
        "feedforward_modules": sorted(
            names.real[name] for name, vector in vectors.items() if _is_row(vector, name, adapter.config)
        ),
        "modified_modules": sorted(names.real[module] for module in vectors),
    }
    tensors = {delta_key(names.real[module], "ia3_l"): vector.flatten() for module, vector in vectors.items()}
    return Converted(options, tensors)


def _is_row(vector: Tensor, module: str, config: Mapping[str, Any]) -> bool:
    """Return whether a module is rescaled at its input: then PEFT keeps a row, ``(1, n_in)``, else a column."""
    if vector.shape[0] != vector.shape[1]:
        return vector.shape[0] == 1
    return module in at_input(config.get("feedforward_modules") or (), [module])


def layer_norm(adapter: SavedAdapter) -> Converted:
    """Convert LayerNorm tuning, whose values replace those of the norms."""
    names, live_values = adapter.names, own_values(adapter.names.backbone)
    tensors = {}
    for (module, leaf), value in adapter.leaves.items():
        key = leaf.rpartition(".")[2]
        live = live_values.get(f"{names.real[module]}.{key}")
        if live is None or live.shape != value.shape:
            msg = f"The adapter has a {key} {list(value.shape)} for {module}, which here has {'none' if live is None else list(live.shape)}. Load its own backbone."
            raise CheckpointError(msg)
        tensors[delta_key(names.real[module], key)] = value - live.detach().cpu().to(value.dtype)
    modules = [names.real[module] for module in adapter.modules]
    return Converted({"delta_type": "layer_norm", "modified_modules": sorted(modules)}, tensors)


def beft(adapter: SavedAdapter) -> Converted:
    """Convert BEFT: a bias added to each output."""
    real = adapter.names.real
    tensors = {delta_key(real[module], "bias"): bias.flatten() for (module, _), bias in adapter.leaves.items()}
    modules = sorted(real[module] for module in adapter.modules)
    return Converted({"delta_type": "bitfit", "modified_modules": modules}, tensors)
