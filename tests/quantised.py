"""Quantised layers to test with: those of bitsandbytes and torchao, which run on a CPU."""

import pytest
import torch
from torch import nn


def bitsandbytes_layer(layer, kind):
    """A linear layer as one of bitsandbytes: kind is int8, nf4 or fp4."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes, bias, dtype = (layer.in_features, layer.out_features), layer.bias is not None, layer.weight.dtype
    if kind == "int8":
        made = bnb.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
        made.weight = bnb.nn.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(*sizes, bias=bias, compute_dtype=dtype, quant_type=kind)
        made.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type=kind, module=made)
    made.bias = layer.bias
    return made.to("cpu")


def torchao_layer(layer):
    """A linear layer with a weight of torchao in int8."""
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    return layer


REAL = {
    "int8": lambda layer: bitsandbytes_layer(layer, "int8"),
    "nf4": lambda layer: bitsandbytes_layer(layer, "nf4"),
    "fp4": lambda layer: bitsandbytes_layer(layer, "fp4"),
    "torchao": torchao_layer,
}


def quantise(model, kind):
    """Quantise the linear layers of a model's blocks."""
    for module in [*model.modules()]:
        for name, child in [*module.named_children()]:
            if type(child) is nn.Linear and name not in ("classifier", "lm_head"):
                with torch.no_grad():
                    setattr(module, name, REAL[kind](child))
    return model.eval()
