"""The interface of quantised layers: the weight as numbers, its shape, compute dtype and device, and new codes for new values."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn

_FAULT: Final = "its {} codes are written by their own tools only; merged_copy(backbone, dtype=torch.bfloat16) gives a copy with plain weights"
_CHUNK: Final = 1024  # rows of the identity in one call


class Quantised:
    """A quantised linear layer or embedding, whose weight can be read as numbers.

    Reading changes neither the layer nor its codes. A subclass is one kind; `kinds.quantised` finds it.

    Args:
        layer: the layer.

    Attributes:
        kind: the name of the quantisation, for messages and records.
        package: the package whose functions read the codes; empty if none is needed.
        layer: the layer.
    """

    kind: ClassVar[str] = ""
    package: ClassVar[str] = ""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """Return a layer as this kind; None if it is of another kind or not quantised."""
        raise NotImplementedError

    @property
    def key(self) -> str:
        """The name of the tensor with the codes."""
        return "weight"

    @property
    def name(self) -> str:
        """The quantisation with what distinguishes it, such as ``"bitsandbytes nf4"``."""
        return self.kind

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight: ``(n_out, n_in)``; ``(rows, width)`` of an embedding."""
        if isinstance(self.layer, nn.Embedding):
            return self.layer.num_embeddings, self.layer.embedding_dim
        return _size(self.layer, "out_features"), _size(self.layer, "in_features")

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that the layer computes in; float32 if that depends on its input."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """The device of the codes."""
        return self._codes().device

    @property
    def own_forward(self) -> Any:
        """The forward of the class that keeps the codes, which multiplies by the weight; None where a trial can tell."""
        return None

    def values(self) -> Tensor:
        """Dequantise the weight: ``(n_out, n_in)``; ``(rows, width)`` of an embedding. The tensor is new, without a gradient."""
        with torch.no_grad():
            return self._values().detach()

    def fault(self) -> str:
        """Return why the weight cannot be read, as a clause; empty if it can."""
        if self._codes().is_meta:
            return f"its {self.name} codes are not on this device (offloaded, or without values)"
        if self.package:
            try:
                import_module(self.package)
            except ImportError:
                return f"reading its {self.name} codes needs the package {self.package}: pip install {self.package}"
        return ""

    def requantise_fault(self) -> str:
        """Return why new values cannot be quantised as the layer's weight is, as a clause; empty if they can."""
        return self.fault() or _FAULT.format(self.name)

    def quantise(self, values: Tensor) -> Any:
        """Quantise new values, shaped like `values()`, with the layer's own settings.

        Returns:
            New codes for `swap`. The layer is unchanged.
        """
        raise NotImplementedError

    def swap(self, codes: Any) -> Any:
        """Put codes into the layer, and return the old ones, which `swap` puts back as they were."""
        old = self.layer._parameters["weight"]
        self.layer._parameters["weight"] = codes
        return old

    def _codes(self) -> Tensor:
        """Return the tensor with the codes."""
        weight = self.layer._parameters["weight"]
        assert weight is not None
        return weight

    def _values(self) -> Tensor:
        raise NotImplementedError


def forward_of(layer: nn.Module, *names: str) -> Any:
    """Return the forward of the first class of a layer with one of some names, or None."""
    kind: Any = next((kind for kind in type(layer).__mro__ if kind.__name__ in names), None)
    return getattr(kind, "forward", None)


def _size(layer: nn.Module, name: str) -> int:
    """Return a size of a layer; auto_gptq writes the names without the underscore."""
    size: Any = getattr(layer, name, None)
    return int(getattr(layer, name.replace("_", "")) if size is None else size)


class Called(Quantised):
    """A kind whose weight is read by calling the layer with the rows of the identity, which give the columns of the weight.

    The package's own kernels unpack the codes, whichever way they keep them.
    """

    @property
    def own_forward(self) -> Any:
        """The forward of the layer's class, with which the weight is read."""
        return type(self.layer).forward

    def fault(self) -> str:
        """Return why the weight cannot be read, as a clause: one row is tried."""
        if fault := super().fault():
            return fault
        try:
            self._call(1, 0)
        except Exception as error:  # noqa: BLE001  # kernels raise anything where they cannot run
            return f"its {self.name} kernels do not run here ({type(error).__name__}: {error})"
        return ""

    def _values(self) -> Tensor:
        n_out, n_in = self.shape
        values = torch.empty(n_out, n_in, dtype=self.compute_dtype, device=self.device)
        for start in range(0, n_in, _CHUNK):
            rows = min(_CHUNK, n_in - start)
            values[:, start : start + rows] = self._call(rows, start).T
        return values

    @torch.no_grad()
    def _call(self, rows: int, start: int) -> Tensor:
        """Call the layer, with a bias of zeros and without hooks, with some rows of the identity."""
        identity = torch.zeros(rows, self.shape[1], dtype=self.compute_dtype, device=self.device)
        identity[torch.arange(rows), torch.arange(start, start + rows)] = 1
        twin = copy.copy(self.layer)
        attributes = twin.__dict__
        for kind in ("_buffers", "_parameters"):
            tensors = attributes[kind]
            attributes[kind] = {
                k: torch.zeros_like(t) if k == "bias" and t is not None else t for k, t in tensors.items()
            }
        attributes["training"] = False
        output: Tensor = type(twin).forward(twin, identity)
        return output.view(rows, -1)
