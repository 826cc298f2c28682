"""Every architecture of transformers as a tiny random model, and real inputs that it runs on."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
import transformers
from tiny_sizes import HEADS, LAYERS, OVERRIDES, SIZES, VOCABULARY
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto

from deltahub.engine.dummy_inputs import possible_inputs

_ZERO: Final = ("dropout", "drop_rate", "drop_path", "dropout_prob", "layerdrop", "dropout_rate")
_WIDTH_LISTS: Final = (
    "hidden_sizes",
    "embed_dims",
    "encoder_hidden_size",
    "decoder_hidden_sizes",
    "block_out_channels",
)
_TOKEN_IDS: Final = ("_token_id", "_token_index", "_idx")


def shrink(document: dict[str, Any]) -> dict[str, Any]:
    """Shrink the sizes of a config and its sub-configs."""
    small = {key: _shrunk(key, value) for key, value in document.items() if key not in _NOT_OPTIONS}
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small.get("num_attention_heads", HEADS)  # a latent attention has as many
    layers = document.get("num_hidden_layers")
    for key, value in small.items():
        if isinstance(value, list) and isinstance(layers, int) and len(value) == layers > LAYERS:
            small[key] = value[:LAYERS]  # one entry for each layer
    return small


_NOT_OPTIONS: Final = (
    *("transformers_version", "architectures", "_name_or_path", "model_type", "id2label", "label2id"),
    *("out_features", "out_indices", "_out_features", "_out_indices", "stage_names", "per_layer_config"),
)


def _shrunk(key: str, value: Any) -> Any:
    small = value
    if isinstance(value, dict):
        small = _rotary(value) if "rope" in key else shrink(value)
        if "model_type" in value:
            small["model_type"] = value["model_type"]
    elif isinstance(value, float) and key.endswith(_ZERO):
        small = 0.0
    elif isinstance(value, int) and not isinstance(value, bool):
        small = min(value, SIZES.get(key, value))
        if key.endswith(_TOKEN_IDS) and value >= VOCABULARY:
            small = (
                100 + sum(map(ord, key)) % 27
            )  # apart from each other and from what inputs hold, as far as a sum goes
    elif isinstance(value, (list, tuple)) and value:
        small = _shrunk_list(key, value)
    return small


def _shrunk_list(key: str, value: Any) -> Any:
    small = value
    if isinstance(value, list) and key in ("layer_types", "mlp_layer_types", "layers_block_type"):
        small = (list(dict.fromkeys(value)) * LAYERS)[:LAYERS]
    elif all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        if key in ("depths", "num_layers", "layer_depths", "stage_layers", "num_blocks"):
            small = [1] * len(value)
        elif key in (*_WIDTH_LISTS, "hidden_size"):
            small = [16 * (1 + min(i, 3)) for i in range(len(value))]
        elif key in ("num_attention_heads", "num_heads"):
            small = [2] * len(value)
        elif key in ("image_size", "input_size", "patch_size"):
            small = [min(v, SIZES[key]) for v in value]
    return type(value)(small)


def _rotary(value: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in value.items() if not k.startswith("mrope")}
    return kept | ({"mrope_section": [2, 1, 1]} if "mrope_section" in value else {})


def model_class(model_type: str) -> Any:
    """Return the class of transformers for models of this type, without a head if there is one."""
    tables = sorted(name for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES") and name[:6] != "CONFIG")
    for table in ("MODEL_MAPPING_NAMES", *tables):
        known = getattr(modeling_auto, table).get(model_type)
        name = known[0] if isinstance(known, (tuple, list)) else known
        if name and name != "TimmWrapperModel" and (found := getattr(transformers, name, None)) is not None:
            return found
    return None


def config_of(model_type: str) -> PretrainedConfig:
    """Create a small config of a type."""
    cls = configuration_auto.CONFIG_MAPPING[model_type]
    options = shrink(cls().to_dict())
    return cls(**merge(options, OVERRIDES.get(model_type, {})))


def merge(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge `changes` into `options`, including sub-configs."""
    merged = dict(options)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def make(model_type: str, seed: int = 0) -> nn.Module:
    """Create a tiny random model of a type, in eval mode, with weights large enough that no error hides below rounding."""
    config = config_of(model_type)
    config._attn_implementation = "eager"
    cls = model_class(model_type)
    torch.manual_seed(seed)
    model = cls(config)
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(
        False
    )  # PyTorch takes another path through some layers where gradients may be asked


def model_types() -> list[str]:
    """Return the model types of an auto class of transformers."""
    return [name for name in configuration_auto.CONFIG_MAPPING_NAMES if model_class(name) is not None]


def copy_of(model: nn.Module) -> nn.Module:
    """Create another model with the same weights."""
    return copy.deepcopy(model)


def working_inputs(model: nn.Module) -> dict[str, Any]:
    """Real inputs that a model runs on: those that the config alone tells.

    Raises:
        RuntimeError: it runs on none of them.
    """
    failure: Exception | None = None
    for shapes in possible_inputs(model, batch=2, length=7):
        inputs = {name: _values(name, like) for name, like in shapes.items()}
        try:
            output_of(model, inputs)
        except Exception as error:  # noqa: BLE001  # a model may fail in any way
            failure = failure or error
        else:
            return inputs
    msg = f"no forward pass: {type(failure).__name__}: {failure}"
    raise RuntimeError(msg) from failure


def _values(name: str, like: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if name == "bbox":
        return torch.arange(4).expand(like.shape).contiguous()
    if not like.is_floating_point():
        return torch.randint(3, 30, like.shape, generator=draw)
    return torch.randn(like.shape, generator=draw)


def output_of(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """Return all outputs of a model in one row; a model's randomness is the same each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        found = [tensor.float().flatten() for tensor in _tensors(model(**inputs))]
    if not found:
        msg = "returns no numbers"
        raise TypeError(msg)
    row = torch.cat(found)
    if not row.isfinite().any():
        msg = "returns no finite numbers"
        raise ValueError(msg)
    return row.nan_to_num()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)
