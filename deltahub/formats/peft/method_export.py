"""Conversion of a delta's tensors and options to their PEFT equivalents.

    LoRA         A, B by other names; s = alpha / r. On parts of a fused layer: one update of rank k r for k parts,
             A = [A_1; A_2], B = the blocks B_1, B_2 in the rows and columns of their part, s unchanged
    DoRA         the magnitudes by another name
    IA3          a vector as a column (at the output) or a row (at the input); 1 for the other parts of a fused layer
    LayerNorm    the sum of the backbone's values and the delta's
    soft prompt  the embeddings by another name
    AdaLoRA, VeRA, token rows  in `adalora`, `vera` and `token_rows_export`
    others       the backbone's tensors that the delta trained: `modules_to_save`, or biases of adapted layers

These forms are taken from PEFT itself; each is tested against it.

PEFT's model class for a task passes on certain inputs, which the backbone's forward must accept.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.checkpoint.manifest import DELTA_PART
from deltahub.checkpoint.strength import without_strength
from deltahub.engine.site import is_delta_name
from deltahub.errors import AddressError, ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.peft import adalora, token_rows_export, vera
from deltahub.formats.peft.adapter import Exported, by_part, named, whole_width
from deltahub.formats.peft.lora_export import lora
from deltahub.formats.peft.module_matching import HEADS, as_pattern, left_out, saved, whole_names
from deltahub.formats.peft.parameter_export import by_parameter, modules_of
from deltahub.formats.peft.saved_modules_export import add_trained
from deltahub.formats.peft.shapes import check_shapes

# Endings of transformers' class names, and PEFT's task types.
_TASKS: Final = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
_INPUTS: Final = {"input_ids", "attention_mask", "inputs_embeds"}
_DECODER: Final = {"decoder_input_ids", "decoder_inputs_embeds"}


def task_of(class_name: str, model_class: type[nn.Module] | None) -> str | None:
    """Return PEFT's task type for a class, if PEFT's model for that task can call the class.

    Args:
        model_class: the class; None if it is not known.
    """
    task = next((task for ending, task in _TASKS.items() if class_name.endswith(ending)), None)
    if task is None or model_class is None:
        return None
    taken = set(inspect.signature(model_class.forward).parameters)
    decoding = bool(_DECODER & taken)
    fits = taken >= _INPUTS and (taken >= _DECODER if task == "SEQ_2_SEQ_LM" else not decoding)
    return task if fits else None


def prompt_task(class_name: str, model_class: type[nn.Module] | None) -> str:
    """Return PEFT's task type for a class with a prompt.

    Raises:
        ConfigError: PEFT has no prompts for the class.
    """
    task = task_of(class_name, model_class)
    if task is None:
        msg = (
            f"PEFT knows no prompts for a {class_name or 'backbone of unknown class'}: expected a class of transformers that ends in "
            f"one of {', '.join(_TASKS)}, and whose forward takes {', '.join(sorted(_INPUTS))}; with ForConditionalGeneration also "
            f"{' and '.join(sorted(_DECODER))}, and without it neither."
        )
        raise ConfigError(msg)
    return task


_NO_FORM: Final = {
    "adapter": "PEFT has no bottleneck adapters",
    "parallel_adapter": "PEFT has no parallel adapters",
    "low_rank_adapter": "PEFT has no low-rank adapters",
    "compacter": "PEFT has no compacters",
    "bitfit": "PEFT has no biases that are added to a layer's",
    "weight_update": "such updates are not written for PEFT; delta.as_lora(rank=...) makes a LoRA of it",
    "prefix": "PEFT's prefix tuning moves the positions of the text by the length of the prefix, so that it gives other outputs",
}


def exported(checkpoint: Checkpoint, backbone: Backbone) -> Exported:
    """Convert a delta to an equivalent adapter.

    Raises:
        ConfigError: there is none, or the backbone is needed.
        CheckpointError: the delta's tensors are not those that its config announces.
    """
    checkpoint = replace(checkpoint, document=without_strength(checkpoint.document))
    kind = checkpoint.document["delta_type"]
    makers = {
        "adalora": adalora.write,
        "ia3": _ia3,
        "layer_norm": _layer_norm,
        "lora": lora,
        "soft_prompt": _soft_prompt,
        "token_rows": token_rows_export.write,
        "vera": vera.write,
    }
    if kind not in makers:
        msg = f"This {kind} cannot be written for PEFT: {_NO_FORM.get(kind, 'PEFT has no such method')}. Load it with deltahub."
        raise ConfigError(msg)
    tensors = sorted(checkpoint.tensors.items())  # a safetensors file is unordered
    shares: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        if is_delta_name(name):
            module, _, leaf = f".{name}".partition(DELTA_PART)
            shares.setdefault(module.removeprefix("."), {})[leaf] = tensor
    shares = by_parameter(shares, backbone)
    check_shapes(checkpoint.document, shares)
    adapter = makers[kind](checkpoint.document, shares, backbone)
    modules = modules_of(shares, backbone)
    trained = {name: tensor for name, tensor in tensors if not is_delta_name(name)}
    if adapter.needs_task:
        heads = HEADS.get(prompt_task(backbone.class_name, backbone.model_class), ())
        add_trained(adapter, trained, set(), backbone, heads)
        return adapter
    if trained and adapter.peft_type == token_rows_export.PEFT_TYPE:
        msg = f"PEFT's {adapter.peft_type} train nothing but rows, and the delta also trained {min(trained)}. Load it with deltahub."
        raise ConfigError(msg)
    backbone.refuse_shared(modules)
    add_trained(adapter, trained, modules, backbone)
    try:
        lost = sorted(left_out(adapter.modules_to_save, modules))
    except AddressError as error:
        msg = f"Cannot check which layers PEFT would leave out because of their names. {error} Or load the delta with deltahub."
        raise ConfigError(msg) from error
    if lost:
        msg = f"PEFT would leave out {lost[0]}, because of the names of the layers trained beside it. Load the delta with deltahub."
        raise ConfigError(msg)
    return adapter


# ----- IA3 -----


def _ia3(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], backbone: Backbone) -> Exported:
    tensors: dict[str, Tensor] = {}
    inner = _rescaled_at_input(document, shares, backbone)
    for module, leaves in shares.items():
        vector = leaves["ia3_l"] if "ia3_l" in leaves else _spread(module, by_part(leaves), backbone)
        tensors[f"{module}.ia3_l"] = vector[None, :] if module in inner else vector[:, None]
    targets, inputs = whole_names(shares, {*backbone.modules, *shares}), whole_names(inner, shares)
    if isinstance(targets, str) or (
        inner and saved(inputs, shares) != inner
    ):  # matches both kinds alike, or PEFT requires a subset
        targets, inputs = as_pattern(shares), as_pattern(inner)
    options = {
        "exclude_modules": None,
        "fan_in_fan_out": any(map(backbone.is_turned, shares)),
        "feedforward_modules": inputs or [],
        "init_ia3_weights": True,
        "target_modules": targets,
    }
    return Exported("IA3", options, named(tensors))


def _rescaled_at_input(
    document: Mapping[str, Any], shares: Mapping[str, Mapping[str, Tensor]], backbone: Backbone
) -> set[str]:
    """Return the layers rescaled at their input. The width of the vector decides, unless the layer is square.

    Raises:
        ConfigError: the backbone is needed.
    """
    lengths = {module: len(leaves["ia3_l"]) for module, leaves in shares.items() if "ia3_l" in leaves}
    sizes = {module: backbone.widths(module) or (width, width) for module, width in lengths.items()}
    layers = {module for module, (n_in, n_out) in sizes.items() if n_in != n_out and lengths[module] == n_in}
    square = {module for module, (n_in, n_out) in sizes.items() if n_in == n_out}
    if square:
        patterns = document.get("feedforward_modules", ())
        layers |= {module for pattern in patterns for module in backbone.meant(pattern, document, square)}
    return layers


def _spread(module: str, shares: Mapping[str, Mapping[str, Tensor]], backbone: Backbone) -> Tensor:
    """Expand the factors of some parts of a layer to the whole layer, with 1 elsewhere."""
    parts = backbone.parts(module, shares)
    first = next(iter(shares))
    width = whole_width(len(shares[first]["ia3_l"]), parts[first])
    factors = torch.ones(width, dtype=shares[first]["ia3_l"].dtype)
    for label, share in shares.items():
        factors[parts[label].rows(width)] = share["ia3_l"]
    return factors


# ----- LayerNorm tuning, soft prompts -----


def _layer_norm(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], backbone: Backbone) -> Exported:
    tensors = {}
    for module, leaves in shares.items():
        for key, offset in leaves.items():
            value = backbone.value(f"{module}.{key}")
            tensors[f"{module}.ln_tuning_layers.{key}"] = (
                value.to(torch.promote_types(value.dtype, offset.dtype)) + offset
            )
    options = {"exclude_modules": None, "target_modules": whole_names(shares, {*backbone.modules, *shares})}
    return Exported("LN_TUNING", options, named(tensors))


def _soft_prompt(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], backbone: Backbone) -> Exported:
    if document.get("bare_embeddings"):
        msg = "PEFT's prompts are put before whole embeddings, and this one is of a release of transformers that left a part of them out."
        raise ConfigError(msg)
    soft = next(leaves["soft_embeds"] for leaves in shares.values() if "soft_embeds" in leaves)
    options = {
        "num_attention_heads": 1,  # a prompt has neither heads nor layers, and PEFT refuses a model without these numbers
        "num_layers": 1,
        "num_transformer_submodules": 1,  # the encoder, or the only stack
        "num_virtual_tokens": soft.shape[0],
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "token_dim": soft.shape[1],
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    return Exported("PROMPT_TUNING", options, {"prompt_embeddings": soft}, needs_task=True)
