"""Single rows of embeddings that an adapter trains, as updates of low rank.

    embedding   dW^T = E D        head   dW = E D        E: (rows of the table, n), one 1 in each column, D: (n, width), new row - old row

PEFT gives the rows of the input embeddings to all layers that share their weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.lora_delta import LowRank
from deltahub.formats.peft.module_matching import meant, saved
from deltahub.formats.peft.saved_adapter import SavedAdapter


def token_rows(adapter: SavedAdapter, taken: Collection[str]) -> dict[str, LowRank]:
    """Read the trained rows.

    Args:
        taken: modules that have another update already.

    Returns:
        Updates by plain name of the module.

    Raises:
        CheckpointError: the file does not have the rows that its config names.
        ConfigError: DeltaHub cannot replace rows in a layer of this kind.
    """
    updates: dict[str, LowRank] = {}
    places = _places(adapter)
    if unnamed := sorted(adapter.rows.keys() - places.keys()):
        msg = f"The adapter's file has rows of {unnamed[0]}, which its config does not name. Fetch it again."
        raise CheckpointError(msg)
    for module, indices in places.items():
        if module not in adapter.rows and module in adapter.names.tied_with_embeddings() and len(places) > 1:
            continue  # its rows are those of the embeddings
        rows = adapter.rows.get(module)
        if rows is None or rows.dim() != 2 or len(rows) != len(indices):
            msg = f"The adapter's config names {len(indices)} rows of {module}, and its file has {0 if rows is None else len(rows)}. Fetch it again."
            raise CheckpointError(msg)
        shared = adapter.names.tied_with_embeddings()
        for place in sorted(shared) if module in shared else [module]:
            if place != module and place in adapter.rows and not torch.equal(adapter.rows[place], rows):
                continue
            if place in taken:
                msg = f"The adapter trains rows of {place} beside another update of it; DeltaHub cannot. Load it with PEFT."
                raise ConfigError(msg)
            updates[place] = _update(adapter, place, indices, rows)
    return updates


def _places(adapter: SavedAdapter) -> dict[str, Sequence[int]]:
    """Return the rows that the config names, by plain name of the module."""
    config, names = adapter.config, adapter.names
    if config["peft_type"] == "TRAINABLE_TOKENS":
        modules = meant(config.get("target_modules") or ["embed_tokens"], names.modules) or _embeddings(adapter)
        return {module: config.get("token_indices") or [] for module in sorted(modules | adapter.rows.keys())}
    indices: Any = config.get("trainable_token_indices") or {}
    if not isinstance(indices, Mapping):
        return dict.fromkeys(_embeddings(adapter), indices)
    return {module: rows for end, rows in indices.items() for module in saved([end], names.modules)}


def _embeddings(adapter: SavedAdapter) -> set[str]:
    get = getattr(adapter.names.backbone, "get_input_embeddings", None)
    layer = get() if callable(get) else None
    return {name for name, module in adapter.names.modules.items() if module is layer and layer is not None}


def _update(adapter: SavedAdapter, module: str, indices: Sequence[int], rows: Tensor) -> LowRank:
    layer = adapter.layer(module)
    if type(layer).forward not in (nn.Linear.forward, nn.Embedding.forward) or getattr(layer, "bias", None) is not None:
        kind = type(layer).__name__
        if not isinstance(layer, nn.Embedding):
            msg = f"The adapter trains rows of {module}, a {kind} that is not a plain embedding or a head without a bias. Load it with PEFT."
            raise ConfigError(msg)
    weight = adapter.weight(module)
    table = weight.T if isinstance(layer, nn.Embedding) else weight
    if (
        rows.shape[1] != table.shape[1]
        or len(set(indices)) != len(indices)
        or not all(0 <= row < len(table) for row in indices)
    ):
        msg = f"The adapter trains the rows {list(indices)[:5]} {list(rows.shape)} of {module}, which has {list(table.shape)}. Load its own backbone."
        raise CheckpointError(msg)
    ones = nn.functional.one_hot(torch.tensor(indices), len(table)).to(rows.dtype)
    change = rows - table[list(indices)].to(rows.dtype)
    return LowRank(ones, change.T, 1.0) if isinstance(layer, nn.Embedding) else LowRank(change, ones.T, 1.0)
