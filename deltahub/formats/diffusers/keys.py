"""The names of tensors in the files of diffusers, kohya and LyCORIS.

unet.down_blocks.0.attentions.0.proj_in.lora_A.weight                        diffusers
text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight     diffusers, text encoders
unet.[...].attn1.processor.to_q_lora.down.weight                             diffusers until 0.21, with layers named by their attention
lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight                kohya: the layer's name with "_" for "."
lycoris_transformer_blocks_0_attn_to_q.lokr_w1                               LyCORIS
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

DOWN: Final = "lora_A"
UP: Final = "lora_B"
MIDDLE: Final = "lora_mid"
BIAS: Final = "lora_B.bias"
MAGNITUDE: Final = "lora_magnitude_vector"
SCALE: Final = "dora_scale"
ALPHA: Final = "alpha"
METADATA: Final = "lora_adapter_metadata"  # in the header: PEFT's config of each model, as JSON
LOHA: Final = frozenset({f"hada_{leaf}" for leaf in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")})
LOKR: Final = frozenset({f"lokr_{leaf}" for leaf in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")})

# The models of a pipeline, as diffusers and ComfyUI call them and as kohya's scripts and LyCORIS do.
MODELS: Final = (
    *("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("prior", "controlnet", "diffusion_model"),
)
FLAT_MODELS: Final = ("lora_unet", "lora_transformer", "lora_te1", "lora_te2", "lora_te3", "lora_te", "lycoris")
_ENDS: Final = (  # of a name, and the tensor that it means
    (r"\.lora_A(?:\.default)?\.weight", DOWN),
    (r"\.lora_B(?:\.default)?\.weight", UP),
    (r"\.lora_B(?:\.default)?\.bias", BIAS),
    (r"\.lora_down\.weight", DOWN),
    (r"\.lora_up\.weight", UP),
    (r"\.lora_mid\.weight", MIDDLE),
    (r"(?:\.lora|\.lora_linear_layer|(?P<attention>_lora))\.(?:(?P<down>down)|up)\.weight", ""),
    (r"\.lora(?:_linear_layer)?\.up\.bias", BIAS),
    (r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?", MAGNITUDE),
    (r"\.dora_scale", SCALE),
    (r"\.alpha", ALPHA),
    *((rf"\.{leaf}", leaf) for leaf in sorted(LOHA | LOKR)),
)
_KEY: Final = re.compile(
    f"(?P<layer>.+?)(?:{'|'.join(f'(?P<end{number}>{end})' for number, (end, _) in enumerate(_ENDS))})"
)


@dataclass(frozen=True)
class Key:
    """The meaning of a name in a file.

    Attributes:
        model: the model that the file names, as in `MODELS` and `FLAT_MODELS`; empty if it names none.
        layer: the name of the layer in it.
        leaf: the tensor of the method.
        flat: whether the layer's name has "_" for ".".
        attention: whether the layer is named by its attention, such as ``attn1.processor.to_q``.
    """

    model: str
    layer: str
    leaf: str
    flat: bool
    attention: bool = False


def parse_key(name: str) -> Key | None:
    """Return the meaning of a name; None for a tensor that is of none of these methods."""
    match = _KEY.fullmatch(name)
    if match is None:
        return None
    number = next(number for number in range(len(_ENDS)) if match[f"end{number}"])
    leaf = _ENDS[number][1] or (DOWN if match["down"] else UP)
    layer, attention = match["layer"], bool(match["attention"])
    if flat := next((model for model in FLAT_MODELS if layer.startswith(f"{model}_")), ""):
        return Key(flat, layer.removeprefix(f"{flat}_"), leaf, flat=True)
    model, dot, rest = layer.partition(".")
    if dot and model in MODELS:
        return Key(model, rest, leaf, flat=False, attention=attention)
    return Key("", layer, leaf, flat=False, attention=attention)
