"""Prompts of PEFT: embeddings before the text become a soft prompt, keys and values a prefix.

    prompt tuning, P-tuning, CPT    the embeddings (n, width); what computed them in training is not in the file
    prefix tuning, cartridges       (n, layers, 2, heads, head width): keys and values of each layer in turn

PEFT counts the positions of the text on from the prefix. In an encoder-decoder, it repeats the layers' pairs once and takes the pairs
0, 2, 4 ... of the result, so that half of the file is never used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from deltahub.engine.attention_layers import attentions
from deltahub.engine.modules import own_modules
from deltahub.engine.site import delta_key
from deltahub.engine.structure.names import StructureMap
from deltahub.errors import CheckpointError, ConfigError, TargetError
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter

_OTHER_ORDERS = ("bloom", "gpt_bigcode", "gemma2", "gemma3", "gemma4")  # PEFT rearranges their prefixes


def soft_prompt(adapter: SavedAdapter) -> Converted:
    """Convert a prompt of embeddings."""
    return _soft(adapter, adapter.leaf("", "prompt_embeddings"))


def multitask_prompt(adapter: SavedAdapter) -> Converted:
    """Convert a multitask prompt of one task: its embeddings times the task's matrix of low rank."""
    columns, rows = adapter.leaf("", "prefix_task_cols"), adapter.leaf("", "prefix_task_rows")
    if len(columns) != 1 or len(rows) != 1:
        msg = f"The adapter is a MULTITASK_PROMPT_TUNING of {len(columns)} tasks, which every call has to choose from. Load it with PEFT."
        raise ConfigError(msg)
    return _soft(adapter, adapter.leaf("", "prompt_embeddings") * (columns[0] @ rows[0]))


def _soft(adapter: SavedAdapter, prompt: Tensor) -> Converted:
    home, count, backbone = "", int(adapter.config["num_virtual_tokens"]), adapter.names.backbone
    if _is_encoder_decoder(backbone):
        encoder: Any = backbone.get_encoder()  # type: ignore[operator]
        home = next(name for name, module in own_modules(backbone) if module is encoder)
    if prompt.dim() != 2:
        msg = f"The adapter's prompt is {list(prompt.shape)}; expected one row for each token. Fetch it again."
        raise CheckpointError(msg)
    if len(prompt) != (total := count * int(adapter.config.get("num_transformer_submodules") or 1)):
        msg = f"The adapter's prompt has {len(prompt)} tokens, and its config says {total}. Fetch it again."
        raise CheckpointError(msg)
    soft = prompt[:count]  # the rest is for a decoder, and PEFT never uses it
    options = {"delta_type": "soft_prompt", "soft_token_num": count, "token_init": False, "common_structure": None}
    return Converted(options, {delta_key(home, "soft_embeds"): soft.contiguous()})


def prefix(adapter: SavedAdapter) -> Converted:
    """Convert a prefix of keys and values."""
    config, backbone = adapter.config, adapter.names.backbone
    family = str(getattr(getattr(backbone, "config", None), "model_type", ""))
    if family.startswith(_OTHER_ORDERS):
        msg = f"PEFT rearranges the prefixes of a {family}, which DeltaHub does not know. Load it with PEFT."
        raise ConfigError(msg)
    layers, count = _self_attentions(backbone), int(config["num_virtual_tokens"])
    values = adapter.leaf("", "prompt_embeddings")
    pairs = values.shape[-1] // (2 * len(layers)) if layers else 0
    if values.dim() != 2 or len(values) != count or not pairs or values.shape[1] != pairs * 2 * len(layers):
        msg = (
            f"The adapter's prefix is {list(values.shape)}; expected {count} rows of keys and values for the {len(layers)} attentions of this "
            f"{type(backbone).__name__}. Load its own backbone."
        )
        raise CheckpointError(msg)
    by_layer = values.view(count, 2 * len(layers), pairs).unbind(1)
    step = 2 if int(config.get("num_transformer_submodules") or 1) == 1 else 4
    tensors = {}
    for number, name in enumerate(layers):
        first = step * number % len(by_layer)
        tensors[delta_key(name, "past_key")] = by_layer[first].contiguous()
        tensors[delta_key(name, "past_value")] = by_layer[first + 1].contiguous()
    options = {
        "delta_type": "prefix",
        "prefix_token_num": count,
        "reparameterize": False,
        "shift_positions": True,
        "modified_modules": layers,
    }
    return Converted(options, tensors)


def _self_attentions(backbone: nn.Module) -> list[str]:
    """Return the self-attentions that PEFT gives a prefix, in order: those of the decoder, where there is one.

    Raises:
        ConfigError: no attention of the backbone can be extended.
    """
    try:
        names = list(attentions(backbone))
    except TargetError as error:
        raise ConfigError(str(error)) from error
    if not _is_encoder_decoder(backbone):
        return names
    decoder: Any = backbone.get_decoder()  # type: ignore[operator]
    home = next(name for name, module in own_modules(backbone) if module is decoder)
    structure = StructureMap.of(backbone)
    return [
        name for name in names if name.startswith(f"{home}.") and "crossattn" not in (structure.common_name(name) or "")
    ]


def _is_encoder_decoder(backbone: nn.Module) -> bool:
    return bool(getattr(getattr(backbone, "config", None), "is_encoder_decoder", False))
