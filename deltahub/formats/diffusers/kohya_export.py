"""Writer for kohya's scripts, ComfyUI and other programs that read their files: the LoRA of a U-Net with an alpha for each layer.

The U-Net of Stable Diffusion XL has the names of its authors there, any other those of diffusers, both with "_" for ".".
"""

from __future__ import annotations

from typing import Final

import safetensors.torch
import torch
from torch import Tensor

from deltahub.checkpoint.checkpoint import CARD, Checkpoint
from deltahub.errors import ConfigError
from deltahub.formats.backbone import Backbone
from deltahub.formats.diffusers.original_names import original_names
from deltahub.formats.diffusers.updates import updates_of
from deltahub.formats.writing import card

WEIGHTS: Final = "lora.safetensors"
_ONLY_IN_XL: Final = "add_embedding.linear_1"


def files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of a LoRA for kohya's scripts, by name.

    Raises:
        ConfigError: it is not a LoRA, has a bias, or its backbone is not a U-Net or is needed.
        CheckpointError, FingerprintMismatch: the backbone is not the one of the delta.
    """
    updates, _ = updates_of(saved, backbone, "kohya's format")
    if "UNet" not in backbone.class_name:
        msg = f"kohya's names are known for the U-Nets of diffusers, and this LoRA is on a {backbone.class_name}. Write it for diffusers or PEFT (--format diffusers, peft)."
        raise ConfigError(msg)
    modules = set(backbone.modules)
    names = original_names(modules) if _ONLY_IN_XL in modules else {}
    tensors: dict[str, Tensor] = {}
    for layer, update in updates.items():
        if update.bias is not None:
            msg = f"kohya's format has no bias of B, and the LoRA on {layer} has one. Write it for diffusers (--format diffusers)."
            raise ConfigError(msg)
        stem = f"lora_unet_{names.get(layer, layer).replace('.', '_')}"
        if f"{stem}.alpha" in tensors:
            msg = f"kohya's format has one name, {stem}, for two layers of this backbone. Write it for diffusers (--format diffusers)."
            raise ConfigError(msg)
        # An alpha of 0 means the rank there.
        up, scale = (update.up, update.scale) if update.scale > 0 else (update.scaled(update.up), 1.0)
        tensors |= {
            f"{stem}.lora_down.weight": update.down.contiguous(),
            f"{stem}.lora_up.weight": up.contiguous(),
            f"{stem}.alpha": torch.tensor(scale * update.rank),
        }
        if update.magnitude is not None:
            tensors[f"{stem}.dora_scale"] = update.magnitude.reshape(-1, 1).contiguous()
    return {
        WEIGHTS: safetensors.torch.save(tensors, {"format": "pt"}),
        CARD: card(
            saved, backbone.named or str(saved.document.get("metadata", {}).get("backbone_model") or ""), "diffusers"
        ),
    }
