"""Layers of bitsandbytes: 8-bit (LLM.int8) and 4-bit (nf4, fp4), linear layers and embeddings.

8-bit   w = code / 127 * s          s: one for each row
4-bit   w = table[code] * s         s: one for each block, itself kept in 8 bits if the statistics are nested
"""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor, nn

from deltahub.engine.quantised.layer import Quantised, forward_of


class _OfBitsandbytes(Quantised):
    package = "bitsandbytes"

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that the layer was built for."""
        dtype = getattr(self.layer, "compute_dtype", None) or getattr(self.layer, "dtype", None)
        return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else self._stored_dtype()

    @property
    def own_forward(self) -> Any:
        """The forward of bitsandbytes' class, also where a subclass has another one."""
        return forward_of(self.layer, "Linear8bitLt", "Linear4bit", "Embedding8bit", "Embedding4bit")

    def requantise_fault(self) -> str:
        """Return why new values cannot be quantised as the layer's weight is: only if it cannot be read."""
        return self.fault()

    def _stored_dtype(self) -> torch.dtype:
        return torch.float32


class EightBit(_OfBitsandbytes):
    """A Linear8bitLt or an Embedding8bit."""

    kind = "bitsandbytes int8"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind if its weight is an Int8Params."""
        return cls(layer) if type(layer._parameters.get("weight")).__name__ == "Int8Params" else None

    def fault(self) -> str:
        """Return why the weight cannot be read, as a clause: also if its codes have no scales."""
        if fault := super().fault():
            return fault
        missing = self._codes().dtype == torch.int8 and self._scales() is None
        return "its int8 codes have no scales (SCB): load it with load_in_8bit=True" if missing else ""

    def _scales(self) -> Tensor | None:
        """Return the scale of each row, which the first forward pass moves from the weight to the layer's state."""
        state = getattr(self.layer, "state", None)
        scales = getattr(state, "SCB", None)
        return scales if scales is not None else getattr(self._codes(), "SCB", None)

    def _values(self) -> Tensor:
        weight, scales = self._codes(), self._scales()
        if weight.dtype != torch.int8 or scales is None:
            return weight.as_subclass(Tensor)  # never quantised (has_fp16_weights)
        bnb = import_module("bitsandbytes.functional")
        values: Tensor = bnb.int8_vectorwise_dequant(weight.as_subclass(Tensor), scales.to(weight.device))
        return values

    def quantise(self, values: Tensor) -> Any:
        """Quantise new values row by row; the package does so from float16."""
        weight: Any = self._codes()
        kind, device = type(weight), self.device
        if weight.dtype != torch.int8:
            return kind(values.to(weight.dtype), weight.requires_grad, weight.has_fp16_weights)
        bnb = import_module("bitsandbytes.functional")
        codes, scales, _ = bnb.int8_vectorwise_quant(values.to(device, torch.float16).contiguous())
        return kind(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales)

    def swap(self, codes: Any) -> Any:
        """Put codes into the layer with their scales, and return the old ones."""
        state: Any = getattr(self.layer, "state", None)
        old_state = None if state is None else (state.CB, state.SCB)
        weight, new_state = codes if isinstance(codes, tuple) else (codes, (None, None))
        old = super().swap(weight)
        if state is not None:
            state.CB, state.SCB = new_state
        return old, old_state


class FourBit(_OfBitsandbytes):
    """A Linear4bit or an Embedding4bit."""

    kind = "bitsandbytes 4-bit"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind if its weight is a Params4bit, also after FSDP has made it a plain parameter."""
        weight = layer._parameters.get("weight")
        is_known = type(weight).__name__ == "Params4bit" or (
            weight is not None and type(getattr(layer, "quant_state", None)).__name__ == "QuantState"
        )
        return cls(layer) if is_known else None

    @property
    def name(self) -> str:
        """The table of values: nf4 or fp4, nested or not."""
        state = self._state()
        table = getattr(self._codes(), "quant_type", "4-bit") if state is None else state.quant_type
        return f"bitsandbytes {table}{', nested' if state is not None and state.nested else ''}"

    def _state(self) -> Any:
        state = getattr(self._codes(), "quant_state", None)
        return state if state is not None else getattr(self.layer, "quant_state", None)

    def _stored_dtype(self) -> torch.dtype:
        state = self._state()
        return torch.float32 if state is None else state.dtype

    def fault(self) -> str:
        """Return why the weight cannot be read, as a clause: also if its codes have no state."""
        if fault := super().fault():
            return fault
        missing = self._state() is None and not self._codes().is_floating_point()
        return "its 4-bit codes have no quant_state: load it with load_in_4bit=True" if missing else ""

    def _values(self) -> Tensor:
        state, codes = self._state(), self._codes().as_subclass(Tensor)
        if state is None:
            return codes  # not quantised yet
        bnb = import_module("bitsandbytes.functional")
        if getattr(state, "packing_format_for_cpu", False):  # what the first forward pass on some CPUs makes of it
            codes, state = bnb._convert_weight_packed_for_cpu_inverse(codes, copy.deepcopy(state))
        values: Tensor = bnb.dequantize_4bit(codes, state)
        return values

    def quantise(self, values: Tensor) -> Any:
        """Quantise new values block by block, with nested statistics if the layer has them."""
        weight, state = self._codes(), self._state()
        kind: Any = type(weight)
        if state is None:
            return kind(values.to(weight.dtype), **_settings(weight))
        bnb = import_module("bitsandbytes")
        nested = getattr(state, "original_nested", state.nested)
        dtype = getattr(state, "original_dtype", state.dtype)
        storage = getattr(weight, "quant_storage", weight.dtype)
        codes, new_state = bnb.functional.quantize_4bit(
            values.to(self.device, dtype).contiguous(),
            blocksize=state.blocksize,
            compress_statistics=nested,
            quant_type=state.quant_type,
            quant_storage=storage,
        )
        settings = _settings(weight) | {"quant_state": new_state, "bnb_quantized": True}
        return bnb.nn.Params4bit(codes, requires_grad=False, **settings)

    def swap(self, codes: Any) -> Any:
        """Put codes into the layer with their state, and return the old ones."""
        old = super().swap(codes)
        if "quant_state" in vars(self.layer):
            vars(self.layer)["quant_state"] = getattr(codes, "quant_state", None)
        return old


def _settings(weight: Tensor) -> dict[str, Any]:
    names = ("blocksize", "compress_statistics", "quant_type", "quant_storage", "module")
    return {name: getattr(weight, name) for name in names if hasattr(weight, name)}
