"""Layers of torchao, whose weight is a tensor subclass that holds codes and scales."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.engine.quantised.layer import Quantised


class TorchaoTensor(Quantised):
    """A layer whose weight is one of torchao's tensors."""

    kind = "torchao"
    package = "torchao"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind if its weight is of a class of torchao."""
        weight = layer._parameters.get("weight")
        return cls(layer) if type(weight).__module__.startswith("torchao.") else None

    @property
    def name(self) -> str:
        """The class of the tensor."""
        return f"torchao {type(self._codes()).__name__}"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight as the tensor tells it."""
        n_out, n_in = self._codes().shape
        return n_out, n_in

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that the tensor presents itself as."""
        return self._codes().dtype

    def _values(self) -> Tensor:
        weight: Any = self._codes()
        if "dequantize" in {name for kind in type(weight).__mro__[:-2] for name in vars(kind)}:
            values: Tensor = weight.dequantize()
            return values
        identity = torch.eye(self.shape[1], dtype=weight.dtype, device=self.device)
        return F.linear(
            identity, weight
        ).T.contiguous()  # formats without a function of their own are read by their kernels

    def requantise_fault(self) -> str:
        """Return why new values cannot be quantised as the layer's weight is, as a clause; empty for the integer formats in the open."""
        if type(self._codes()).__name__ in ("Int8Tensor", "IntxUnpackedToInt8Tensor"):
            return self.fault()
        return super().requantise_fault()

    def quantise(self, values: Tensor) -> nn.Parameter:
        """Quantise new values with the block size, the symmetry and the activation settings of the layer's weight."""
        weight: Any = self._codes()
        values = values.to(self.device, weight.dtype)
        new: Any
        if type(weight).__name__ == "Int8Tensor":
            new = type(weight).from_hp(
                values,
                _granularity(tuple(weight.block_size), tuple(weight.shape)),
                **_symmetry(weight),
                act_quant_kwargs=weight.act_quant_kwargs,
                act_quant_scale=weight.act_quant_scale,
                act_quant_zero_point=weight.act_quant_zero_point,
                act_pre_scale=weight.act_pre_scale,
                reduce_range=weight.reduce_range,
            )
        else:
            new = type(weight).from_hp(values, weight.block_size, weight.target_dtype, **_symmetry(weight))
            new.activation_quantization = weight.activation_quantization
        return nn.Parameter(new, requires_grad=False)


def _granularity(block: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    package = import_module("torchao.quantization")
    if block == shape:
        return package.PerTensor()
    return package.PerRow() if block[-1] == shape[-1] else package.PerGroup(block[-1])


def _symmetry(weight: Any) -> dict[str, Any]:
    package = import_module("torchao.quantization")
    points = weight.zero_point
    symmetric = points is None or not bool(points.any())
    return {"mapping_type": package.MappingType.SYMMETRIC if symmetric else package.MappingType.ASYMMETRIC}
