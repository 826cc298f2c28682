"""Writer for diffusers: `pytorch_lora_weights.safetensors`, with the name of the model before each layer and PEFT's config in the header.

The scale is multiplied into B, and each alpha is the rank: programs that do not read the config compute the same.
"""

from __future__ import annotations

import json
from typing import Final

import safetensors.torch
from torch import Tensor

from deltahub.checkpoint.checkpoint import CARD, Checkpoint
from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.diffusers.keys import METADATA
from deltahub.formats.diffusers.updates import updates_of
from deltahub.formats.writing import card

WEIGHTS: Final = "pytorch_lora_weights.safetensors"
_TEXT_ENCODER: Final = "text_encoder"
_ENDS: Final = {  # of the names of A, B, its bias and the magnitude, and those in a text encoder
    False: (".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector"),
    True: (
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
        ".lora_linear_layer.up.bias",
        ".lora_magnitude_vector",
    ),
}


def files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of a LoRA for diffusers, by name.

    Raises:
        ConfigError: it is not a LoRA, its model has several names in pipelines, or the backbone is needed.
        CheckpointError, FingerprintMismatch: the backbone is not the one of the delta.
    """
    updates, options = updates_of(saved, backbone, "diffusers")
    model = _model(backbone.class_name)
    tensors: dict[str, Tensor] = {}
    for layer, update in updates.items():
        of_text = model == _TEXT_ENCODER
        # diffusers removes the prefix where transformers has none.
        prefix = "text_model." if of_text and not layer.startswith("text_model.") else ""
        bias = None if update.bias is None else update.scaled(update.bias)
        values = (update.down, update.scaled(update.up), bias, update.magnitude)
        tensors |= {
            f"{model}.{prefix}{layer}{end}": value.contiguous()
            for end, value in zip(_ENDS[of_text], values, strict=True)
            if value is not None
        }
    ranks = options["rank_pattern"]
    config = {**options, "peft_type": "LORA", "lora_alpha": options["r"], "alpha_pattern": ranks, "use_rslora": False}
    header = json.dumps({f"{model}.{key}": value for key, value in config.items()}, indent=2, sort_keys=True)
    return {
        WEIGHTS: safetensors.torch.save(tensors, {"format": "pt", METADATA: header}),
        CARD: card(
            saved, backbone.named or str(saved.document.get("metadata", {}).get("backbone_model") or ""), "diffusers"
        ),
    }


def _model(class_name: str) -> str:
    """Return the name that diffusers' pipelines have for a model.

    Raises:
        ConfigError: they have several, or none.
    """
    if class_name == "CLIPTextModel":
        return _TEXT_ENCODER
    if "UNet" in class_name:
        return "unet"
    if "Transformer" in class_name:
        return "transformer"
    msg = (
        f"diffusers keeps the LoRA of each model of a pipeline under its name, and it is not known for a {class_name or 'backbone of unknown class'}: "
        "expected a UNet2DConditionModel, a transformer of diffusers, or a CLIPTextModel. Write it for PEFT (--format peft)."
    )
    raise ConfigError(msg)
