"""Quantised layers turned into plain ones, in place, so that modules which hold them and hooks stay."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.modules import own_modules
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.quantised.layer import Quantised

_MARKS: Final = ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized")
_OURS: Final = "_deltahub"  # attributes of this package at a layer
_CAST: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def make_plain(backbone: nn.Module) -> None:
    """Dequantise every layer of a known kind: its weight becomes a parameter in float32, and its class Linear or Embedding.

    transformers' notes that a model is quantised are removed. Each layer was checked with `fault` before.
    """
    for _, module in [*own_modules(backbone)]:
        if (coded := quantised(module)) is not None:
            replace(module, coded, nn.Parameter(coded.values().float(), requires_grad=False))
        if "hf_quantizer" in vars(module):  # those of the codes; save_pretrained falls back to those of the class
            vars(module).pop("_weight_conversions", None)
        for mark in _MARKS:
            vars(module).pop(mark, None)
        config: Any = vars(module).get("config")
        if hasattr(config, "quantization_config"):
            del config.quantization_config


def replace(layer: nn.Module, coded: Quantised, weight: nn.Parameter) -> None:
    """Give a layer a plain weight, and the class of a plain layer if the forward of its own class reads codes.

    Args:
        layer: the layer that `coded` reads, or a copy of it.
    """
    if coded.own_forward is None:
        layer._parameters["weight"] = weight
        return
    bias: Any = getattr(layer, "bias", None)
    plain = _plain_layer(layer, coded, bias is not None)
    attributes = vars(layer)
    kept = {key: value for key, value in attributes.items() if key.startswith(_OURS) or "_hooks" in key}
    parameters = attributes["_parameters"]  # a class of its own where deltas are (`engine/site.py`)
    parameters.clear()
    parameters["weight"] = weight
    if isinstance(plain, nn.Linear):
        parameters["bias"] = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    modules = attributes["_modules"]
    training = layer.training
    attributes.clear()
    attributes.update({**vars(plain), **kept, "_parameters": parameters, "_modules": modules, "training": training})
    layer.__class__ = type(plain)


def _plain_layer(layer: nn.Module, coded: Quantised, bias: bool) -> nn.Linear | nn.Embedding:
    """Return a plain layer of the same form, without values."""
    if isinstance(layer, nn.Embedding):
        rows, width = coded.shape
        names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
        options: dict[str, Any] = {name: getattr(layer, name) for name in names}
        return nn.Embedding(rows, width, device="meta", **options)
    n_out, n_in = coded.shape
    return nn.Linear(n_in, n_out, bias=bias, device="meta")


@torch.no_grad()
def cast(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Cast a model's floating-point parameters and persistent buffers, as transformers does when it loads one in a dtype."""
    done: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # a parameter that modules share stays one
    for _, module in own_modules(backbone):
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype in _CAST:
                if id(parameter) not in done:
                    done[id(parameter)] = parameter, _as(parameter, dtype)
                module._parameters[key] = done[id(parameter)][1]
        for key, buffer in module._buffers.items():
            if isinstance(buffer, Tensor) and buffer.dtype in _CAST and key not in module._non_persistent_buffers_set:
                module._buffers[key] = buffer.to(dtype)


def _as(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    if parameter.dtype == dtype:
        return parameter
    return nn.Parameter(parameter.to(dtype), requires_grad=parameter.requires_grad)
