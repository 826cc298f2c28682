"""Layers of GPTQ, AWQ, EETQ, AQLM and HQQ, whose codes are packed in forms of their own.

They are known by their tensors, because the packages have many classes, one for each kernel.
"""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from deltahub.engine.quantised.layer import Called, Quantised


def _tensor(layer: nn.Module, name: str) -> Tensor | None:
    """Return a tensor of a layer: a parameter, a buffer or a plain attribute."""
    named: dict[str, Any] = {**vars(layer), **layer._buffers, **layer._parameters}
    value = named.get(name)
    return value if isinstance(value, Tensor) else None


def _first(layer: nn.Module, *names: str) -> Tensor | None:
    tensors = (_tensor(layer, name) for name in names)
    return next((tensor for tensor in tensors if tensor is not None), None)


def _present(layer: nn.Module, *names: str) -> Tensor:
    tensor = _first(layer, *names)
    assert tensor is not None  # `of` asked for it
    return tensor


def _dtype(scales: Tensor | None) -> torch.dtype:
    return (
        scales.dtype
        if scales is not None and scales.is_floating_point() and scales.dtype.itemsize > 1
        else torch.float16
    )


class Packed(Called):
    """A layer of GPTQ or AWQ: integers packed into wider ones, with scales and zero points for groups of inputs."""

    kind = "GPTQ or AWQ"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind if it has `qweight` and `scales`."""
        return None if _tensor(layer, "qweight") is None or _tensor(layer, "scales") is None else cls(layer)

    @property
    def name(self) -> str:
        """AWQ or GPTQ by the class, with the number of bits."""
        kind = "AWQ" if "awq" in _modules(self.layer) or "wqlinear" in _modules(self.layer) else "GPTQ"
        bits = getattr(self.layer, "w_bit", None) or getattr(self.layer, "bits", None)
        return f"{kind} {bits}-bit" if isinstance(bits, int) else kind

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the scales."""
        return _dtype(_tensor(self.layer, "scales"))

    def _codes(self) -> Tensor:
        return _present(self.layer, "qweight")


class Eetq(Called):
    """A layer of EETQ: int8 codes ``(n_in, n_out)`` in the order of its kernel, with a scale for each output."""

    kind = "EETQ int8"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind by the name of its class."""
        names = {kind.__name__ for kind in type(layer).__mro__}
        return (
            cls(layer)
            if names & {"EetqLinear", "W8A16Linear"} and _first(layer, "weight", "qweight") is not None
            else None
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, which is kept the other way round."""
        n_in, n_out = self._codes().shape
        return n_out, n_in

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the scales, float16."""
        return _dtype(_first(self.layer, "weight_scales", "scales"))

    def _codes(self) -> Tensor:
        return _present(self.layer, "weight", "qweight")


class Aqlm(Called):
    """A layer of AQLM: each group of weights is a sum of vectors from code books."""

    kind = "AQLM"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind if it has `codes` and `codebooks`."""
        return None if _tensor(layer, "codes") is None or _tensor(layer, "codebooks") is None else cls(layer)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the code books."""
        return _dtype(_tensor(self.layer, "codebooks"))

    def _codes(self) -> Tensor:
        return _present(self.layer, "codes")


class Hqq(Quantised):
    """A layer of HQQ: packed integers `W_q`, with scales and zero points in `meta`."""

    kind = "HQQ"

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind if it has `W_q` and a function that dequantises."""
        has_codes = _tensor(layer, "W_q") is not None and isinstance(getattr(layer, "meta", None), dict)
        return cls(layer) if has_codes and callable(getattr(layer, "dequantize", None)) else None

    @property
    def key(self) -> str:
        """The name of the tensor with the codes."""
        return "W_q"

    @property
    def name(self) -> str:
        """HQQ with the number of bits."""
        bits = self._meta().get("nbits")
        return f"HQQ {bits}-bit" if isinstance(bits, int) else "HQQ"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, as recorded before it was packed."""
        n_out, n_in = self._meta()["shape"] if "shape" in self._meta() else super().shape
        return int(n_out), int(n_in)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that the layer was built for."""
        dtype = getattr(self.layer, "compute_dtype", None) or self._meta().get("compute_dtype")
        return dtype if isinstance(dtype, torch.dtype) else torch.float16

    @property
    def own_forward(self) -> Any:
        """The forward of the layer's class."""
        return type(self.layer).forward

    def _meta(self) -> dict[str, Any]:
        meta: Any = self.layer.meta
        assert isinstance(meta, dict)
        return meta

    def _codes(self) -> Tensor:
        return _present(self.layer, "W_q")

    def _values(self) -> Tensor:
        values: Tensor = self.layer.dequantize()  # type: ignore[operator]
        return values.reshape(self.shape)

    def requantise_fault(self) -> str:
        """Return why new values cannot be quantised as the layer's weight is, as a clause: also if it does not know its settings."""
        known = isinstance(getattr(self.layer, "quant_config", None), dict)
        return self.fault() if known else super().requantise_fault()

    def quantise(self, values: Tensor) -> tuple[Any, Any]:
        """Quantise new values by a new layer with the same settings."""
        layer: Any = self.layer
        settings = copy.deepcopy(layer.quant_config)
        with_offload = {**settings, "offload_meta": getattr(layer, "offload_meta", False)}
        new: Any = type(layer)(None, with_offload, compute_dtype=self.compute_dtype, device=str(self.device))
        settings.pop("offload_meta", None)
        new.quantize(values.to(self.device, self.compute_dtype), **settings)
        return new.W_q, new.meta

    def swap(self, codes: Any) -> Any:
        """Put codes into the layer with their scales, and return the old ones."""
        old = self.layer.W_q, self.layer.meta
        self.layer.W_q, self.layer.meta = codes
        return old


def _modules(layer: nn.Module) -> str:
    return " ".join(f"{kind.__module__}.{kind.__name__}" for kind in type(layer).__mro__).lower()
