"""Which tensors and options of PEFT say the same as those of a delta.

    LoRA         A, B by other names; s = alpha / r. On parts of a fused layer: one update of rank k r for k parts,
                 A = [A_1; A_2], B = the blocks B_1, B_2 in the rows and columns of their part, s as it was
    DoRA         the magnitudes by another name
    IA3          a vector as a column (at the output) or a row (at the input); a fused layer's other parts are 1
    LayerNorm    the sum of the backbone's values and the delta's
    soft prompt  the embeddings by another name
    others       the backbone's tensors that the delta trained: `modules_to_save`, or biases of adapted layers

PEFT itself is the source of these forms; each is tested against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.address import REGEX_MARK, Address
from deltahub.checkpoint import Checkpoint
from deltahub.engine.site import is_delta_name
from deltahub.errors import ConfigError
from deltahub.formats.peft_adapter import MODEL, Exported, by_part, named, whole_width
from deltahub.formats.peft_lora import lora
from deltahub.formats.peft_places import Places
from deltahub.manifest import DELTA_PART

_EMBEDDINGS: Final = re.compile(r"wte|shared|embed_tokens|\w*embeddings?|tok_embeddings")
_NO_FORM: Final = {
    "adapter": "PEFT has no bottleneck adapters",
    "parallel_adapter": "PEFT has no parallel adapters",
    "low_rank_adapter": "PEFT has no low-rank adapters",
    "compacter": "PEFT has no compacters",
    "bitfit": "PEFT has no biases that are added to a layer's",
    "prefix": "PEFT's prefix tuning moves the positions of the text by the length of the prefix, so that it gives other outputs",
}


def exported(saved: Checkpoint, places: Places) -> Exported:
    """The adapter that says the same as a delta.

    Raises:
        ConfigError: there is none, or the backbone is needed.
    """
    kind = saved.document["delta_type"]
    makers = {"lora": lora, "ia3": _ia3, "layer_norm": _layer_norm, "soft_prompt": _soft_prompt}
    if kind not in makers:
        msg = f"This {kind} cannot be written for PEFT: {_NO_FORM.get(kind, 'PEFT has no such method')}. Load it with deltahub."
        raise ConfigError(msg)
    tensors = sorted(saved.tensors.items())  # a safetensors file has no order
    shares: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        if is_delta_name(name):
            module, _, leaf = f".{name}".partition(DELTA_PART)
            shares.setdefault(module.removeprefix("."), {})[leaf] = tensor
    found = makers[kind](saved.document, shares, places)
    _add_trained(found, {name: tensor for name, tensor in tensors if not is_delta_name(name)}, set(shares))
    return found


# ----- IA3 -----


def _ia3(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], places: Places) -> Exported:
    tensors: dict[str, Tensor] = {}
    inner = []
    for module, leaves in shares.items():
        if "ia3_l" in leaves:
            vector = leaves["ia3_l"]
            at_input = _at_input(module, len(vector), document, places)
        else:
            vector, at_input = _spread(module, by_part(leaves), places), False
        if at_input:
            inner.append(module)
        tensors[f"{module}.ia3_l"] = vector[None, :] if at_input else vector[:, None]
    options = {
        "exclude_modules": None,
        "fan_in_fan_out": any(map(places.is_turned, shares)),
        "feedforward_modules": inner,
        "init_ia3_weights": True,
        "target_modules": sorted(shares),
    }
    return Exported("IA3", options, named(tensors))


def _at_input(module: str, width: int, document: Mapping[str, Any], places: Places) -> bool:
    """Whether a layer is rescaled at its input.

    Raises:
        ConfigError: nothing tells.
    """
    patterns = document.get("feedforward_modules", ())
    n_in, n_out = places.widths(module) or (width, width)
    if any(_plain(pattern) and Address(pattern).matches(module) for pattern in patterns):
        return True
    if n_in != n_out:
        return width == n_in
    if re.search("att", module, re.IGNORECASE) or not patterns:
        return False
    msg = (
        f"{module} is as wide as its input, so nothing tells at which end it is rescaled. Save the delta with the real names of "
        "such layers in feedforward_modules."
    )
    raise ConfigError(msg)


def _plain(pattern: str) -> bool:
    return "@" not in pattern or pattern.startswith(REGEX_MARK)


def _spread(module: str, shares: Mapping[str, Mapping[str, Tensor]], places: Places) -> Tensor:
    """Factors of some parts of a layer as those of the whole, 1 elsewhere."""
    parts = places.parts(module, shares)
    first = next(iter(shares))
    width = whole_width(len(shares[first]["ia3_l"]), parts[first])
    whole = torch.ones(width, dtype=shares[first]["ia3_l"].dtype)
    for label, share in shares.items():
        whole[parts[label].rows(width)] = share["ia3_l"]
    return whole


# ----- LayerNorm tuning, soft prompts -----


def _layer_norm(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], places: Places) -> Exported:
    tensors = {}
    for module, leaves in shares.items():
        for key, offset in leaves.items():
            own = places.value(f"{module}.{key}")
            tensors[f"{module}.ln_tuning_layers.{key}"] = own.to(torch.promote_types(own.dtype, offset.dtype)) + offset
    options = {"exclude_modules": None, "target_modules": sorted(shares)}
    return Exported("LN_TUNING", options, named(tensors))


def _soft_prompt(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], places: Places) -> Exported:
    if document.get("bare_embeddings"):
        msg = "PEFT's prompts stand before whole embeddings, and this one is of a release of transformers that left a part of them out."
        raise ConfigError(msg)
    soft = next(leaves["soft_embeds"] for leaves in shares.values() if "soft_embeds" in leaves)
    options = {
        "num_attention_heads": None,
        "num_layers": None,
        "num_transformer_submodules": 1,  # the encoder, or the one stack that there is
        "num_virtual_tokens": soft.shape[0],
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "token_dim": soft.shape[1],
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    return Exported("PROMPT_TUNING", options, {"prompt_embeddings": soft}, needs_task=True)


# ----- what all have -----


def _add_trained(found: Exported, trained: Mapping[str, Tensor], adapted: set[str]) -> None:
    """Add the backbone's tensors that a delta trained.

    Raises:
        ConfigError: PEFT cannot replace one of them.
    """
    # For prompts PEFT wraps the backbone once, not twice.
    prefix = "base_model." if found.needs_task else MODEL
    for name, tensor in trained.items():
        module, _, leaf = name.rpartition(".")
        if module in adapted and leaf == "bias" and found.peft_type == "LORA":
            found.options["bias"] = "all"
            found.tensors[f"{prefix}{module}.base_layer.bias"] = tensor
        elif module in adapted or not module:
            what = "is of a layer that the delta adapts" if module else "belongs to no layer"
            msg = f"The delta trained {name}, which {what}, and PEFT cannot replace that. Load it with deltahub."
            raise ConfigError(msg)
        elif _EMBEDDINGS.fullmatch(module.rpartition(".")[2]) and tensor.dim() == 2:
            msg = (
                f"The delta trained {name}. Where an embedding is shared with another layer PEFT would replace it in one place only. "
                "Load it with deltahub."
            )
            raise ConfigError(msg)
        else:
            found.tensors[f"{prefix}{name}"] = tensor
            if module not in found.modules_to_save:
                found.modules_to_save.append(module)
