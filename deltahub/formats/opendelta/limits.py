"""The limits of OpenDelta 0.3.2: what it would compute otherwise, or not at all, and does not report."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from deltahub.errors import ConfigError
from deltahub.formats.backbone import ASK, Backbone

AS_LORA: Final = "Write it as a LoRA (--as-lora RANK), or keep it in DeltaHub's own format."
KEEP: Final = "Keep it in DeltaHub's own format."
# Activations by name, here and in OpenDelta; it fails on every other name.
_ACTIVATIONS: Final = {
    "gelu": "gelu_orig",
    "gelu_new": "gelu_new",
    "gelu_orig": "gelu_orig",
    "gelu_pytorch_tanh": "gelu_new",
    "leakyrelu": "leakyrelu",
    "relu": "relu",
    "silu": "swish",
    "swish": "swish",
    "tanh": "tanh",
}
# Classes that OpenDelta's prefix is put on, and the last part of the name of the attention in them.
_PREFIXED: Final = {
    "BartAttention": "",
    "BertAttention": ".self",
    "GPT2Attention": "",
    "RobertaAttention": ".self",
    "T5LayerSelfAttention": ".SelfAttention",
}
# Model types whose attention gets its hidden state as the first positional argument, where a parallel adapter of OpenDelta reads it.
POSITIONAL: Final = frozenset({"bert", "deberta-v2", "gpt2", "roberta", "t5"})


def require_linear(name: str, backbone: Backbone) -> None:
    """Refuse a LoRA on another layer than a Linear.

    Raises:
        ConfigError: it is another, or the backbone is needed.
    """
    layer = backbone.module(name)
    if layer is None:
        raise ConfigError(f"Only the backbone tells whether {name} is a Linear, which OpenDelta's LoRA needs. {ASK}")
    if not isinstance(layer, nn.Linear):
        msg = f"{name} is a {type(layer).__name__}, and OpenDelta's LoRA takes Linear layers only. {KEEP}"
        raise ConfigError(msg)


def refuse_at_input(document: Mapping[str, Any]) -> None:
    """Refuse an adapter on the input of a module.

    Raises:
        ConfigError: this is one.
    """
    if document.get("at_input"):
        msg = f"This {document['delta_type']} adds to the input of a LayerNorm, where OpenDelta has none. {KEEP}"
        raise ConfigError(msg)


def activation(document: Mapping[str, Any], backbone: Backbone) -> str:
    """Return the name of the activation in OpenDelta, and refuse a backbone on which OpenDelta cannot find the width.

    Raises:
        ConfigError: OpenDelta has no such activation, or its pass with `dummy_inputs` fails on this backbone.
    """
    refuse_without_dummy_inputs(backbone)
    name = str(document.get("non_linearity", "gelu_new"))
    if name not in _ACTIVATIONS:
        msg = f"OpenDelta fails on the activation {name}; it has {', '.join(sorted({*_ACTIVATIONS.values()}))}. {KEEP}"
        raise ConfigError(msg)
    return _ACTIVATIONS[name]


def refuse_without_dummy_inputs(backbone: Backbone) -> None:
    """Refuse a model of transformers that does not take its own `dummy_inputs`: OpenDelta passes over the error, and makes no parameters.

    Raises:
        ConfigError: this is such a model.
    """
    model = backbone.model_or_stand_in
    names = getattr(model, "dummy_inputs", None)
    if model is None or not isinstance(names, Mapping):
        return
    taken = inspect.signature(type(model).forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    if main != "input_ids" or any(name not in taken for name in names):
        msg = (
            f"OpenDelta finds the width of its modules in a pass with tokens, which a {type(model).__name__} does not take, and would load "
            f"nothing. {KEEP}"
        )
        raise ConfigError(msg)


def place_of_prefix(name: str, backbone: Backbone) -> tuple[str, str]:
    """Return the module that OpenDelta's prefix is addressed at, and the one that it is a child of.

    Args:
        name: an attention.

    Raises:
        ConfigError: OpenDelta has no prefix for this attention, or the backbone is needed.
    """
    outer = name.removesuffix(".self").removesuffix(".SelfAttention")
    holder = backbone.module(outer)
    if holder is None:
        raise ConfigError(f"Only the backbone tells which attention {name} is. {ASK}")
    kind = type(holder).__name__
    is_cross = outer.rpartition(".")[2] in ("EncDecAttention", "crossattention", "encoder_attn")
    if _PREFIXED.get(kind) != name.removeprefix(outer) or is_cross:
        reason = "a cross-attention" if is_cross else f"a {kind}"
        msg = f"{name} is {reason}, for which OpenDelta has no prefix; it has one for {', '.join(_PREFIXED)}. {KEEP}"
        raise ConfigError(msg)
    return outer, name if kind == "T5LayerSelfAttention" else outer
