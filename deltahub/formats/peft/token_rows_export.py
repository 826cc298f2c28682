"""Trained token rows as PEFT writes them: `TRAINABLE_TOKENS`, which keeps the new rows, not their differences to the old ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.backbone import ASK, Backbone
from deltahub.formats.peft.adapter import Exported, named
from deltahub.formats.peft.module_matching import whole_names

PEFT_TYPE: Final = "TRAINABLE_TOKENS"


def write(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], backbone: Backbone) -> Exported:
    """Convert trained rows of one table.

    Raises:
        ConfigError: PEFT would not act on the same modules, or the backbone is needed.
        CheckpointError: the backbone has no such rows.
    """
    if len(shares) > 1:
        msg = f"PEFT trains rows of the input embeddings, and this delta trains those of {' and '.join(sorted(shares))}. Load it with deltahub."
        raise ConfigError(msg)
    ((module, leaves),) = shares.items()
    if backbone.model is None:
        msg = f"PEFT keeps the trained rows of {module} themselves, and the delta their differences to the backbone's. {ASK}"
        raise ConfigError(msg)
    target, sharing = _target(module, backbone)
    table, indices = backbone.value(f"{target}.weight"), list(document["token_indices"])
    if indices[-1] >= len(table):
        msg = f"The delta trains the row {indices[-1]}, and {target} has {len(table)} rows. Pass the backbone of the delta."
        raise CheckpointError(msg)
    wide = torch.promote_types(table.dtype, leaves["token_rows"].dtype)
    rows = table[indices].to(wide) + leaves["token_rows"].to(wide)
    options = {
        "init_weights": True,
        "target_modules": whole_names([target], {*backbone.modules, target}),
        "token_indices": indices,
    }
    return Exported(PEFT_TYPE, options, named({f"{name}.trainable_tokens_delta": rows.clone() for name in sharing}))


def _target(module: str, backbone: Backbone) -> tuple[str, list[str]]:
    """Return the module that PEFT has to wrap so that it acts where the delta does, and all that share its weight.

    PEFT gives the rows of the input embeddings to all modules that share their weight, if the config says that weights are tied.

    Raises:
        ConfigError: there is none.
    """
    model: Any = backbone.model
    sharing = sorted(name.removesuffix(".weight") for name in backbone.names_of(f"{module}.weight"))
    get = getattr(model, "get_input_embeddings", None)
    layer = get() if callable(get) else None
    tied = bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))
    inputs = next((name for name in sharing if backbone.module(name) is layer), None)
    if len(sharing) > 1 and (inputs is None or not tied):
        msg = (
            f"{' and '.join(sharing)} share a weight, and PEFT would give the rows to {module} alone: only input embeddings of a backbone whose "
            "config ties them pass them on. Load the delta with deltahub."
        )
        raise ConfigError(msg)
    return inputs or module, sharing
