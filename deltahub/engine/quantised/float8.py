"""Layers with a weight in float8: plain casts, and those of transformers and FBGEMM with scales beside the weight.

w = code * s        s: one for the tensor, for each row, or for each block
"""

from __future__ import annotations

from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from deltahub.engine.quantised.layer import Quantised, forward_of

_SCALES: Final = ("weight_scale_inv", "weight_scale")


class Float8(Quantised):
    """A layer whose weight is a plain parameter of a float8 dtype."""

    kind = "float8"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind if every tensor beside the weight is known."""
        weight = layer._parameters.get("weight")
        if weight is None or not weight.is_floating_point() or weight.dtype.itemsize > 1 or weight.dim() != 2:
            return None
        named = {**vars(layer), **layer._parameters, **layer._buffers}
        tensors = {key for key, value in named.items() if isinstance(value, Tensor)}
        known = {"weight", "bias", "activation_scale", "input_scale", "input_scale_ub", *_SCALES}
        return cls(layer) if tensors <= known else None

    @property
    def name(self) -> str:
        """The dtype of the codes."""
        return str(self._codes().dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight."""
        n_out, n_in = self._codes().shape
        return n_out, n_in

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the bias, if there is one; else bfloat16."""
        bias = self.layer._parameters.get("bias")
        return torch.bfloat16 if bias is None or bias.dtype.itemsize < 2 else bias.dtype

    @property
    def own_forward(self) -> Any:
        """The forward of a class with kernels for float8; None for other classes."""
        return forward_of(self.layer, "FP8Linear", "FbgemmFp8Linear")

    def _scale(self) -> Tensor | None:
        named = (getattr(self.layer, name, None) for name in _SCALES)
        return next((scale for scale in named if isinstance(scale, Tensor)), None)

    def fault(self) -> str:
        """Return why the weight cannot be read, as a clause: also if its scales have an unknown shape."""
        if fault := super().fault():
            return fault
        scale = self._scale()
        if scale is not None and self.own_forward is None:
            return (
                f"its {self.name} codes have scales that a {type(self.layer).__name__} uses in a way that is not known"
            )
        try:
            _ = None if scale is None else self._blocks(scale)
        except ValueError as error:
            return str(error)
        return ""

    def _blocks(self, scale: Tensor) -> tuple[int, int]:
        """Return the height and width of the block that each scale is for."""
        if scale.numel() == 1:
            return self.shape
        shape = scale.shape if scale.dim() > 1 else (*scale.shape, 1)
        block = getattr(self.layer, "block_size", None)
        if block is None:
            block = [-(-size // count) for size, count in zip(self.shape, shape, strict=True)]
        if [-(-size // by) for size, by in zip(self.shape, block, strict=True)] != list(shape):
            msg = f"its scales {list(scale.shape)} do not belong to a weight {list(self.shape)} in blocks of {list(block)}"
            raise ValueError(msg)
        return int(block[0]), int(block[1])

    def _values(self) -> Tensor:
        values, scale = self._codes().to(torch.float32), self._scale()
        return values if scale is None else values * self._spread(scale)

    def _spread(self, scale: Tensor) -> Tensor:
        """Return the scale of each value, ``(n_out, n_in)`` or a single one."""
        if scale.numel() == 1:
            return scale.float().reshape(())
        height, width = self._blocks(scale)
        rows = scale.float().reshape(scale.shape[0], -1)
        spread = rows.repeat_interleave(height, 0).repeat_interleave(width, 1)
        return spread[: self.shape[0], : self.shape[1]]

    def requantise_fault(self) -> str:
        """Return why new values cannot be quantised as the layer's weight is: those beside scales would need new ones."""
        return self.fault() if self._scale() is None else super().requantise_fault()

    def quantise(self, values: Tensor) -> nn.Parameter:
        """Round new values to the dtype of the codes."""
        return nn.Parameter(values.to(self.device, self._codes().dtype), requires_grad=False)
