"""The base class of methods that update a weight: an insertion that computes with W + dW in place of W.

    y = (W + dW) x + b + db        W: (n_out, n_in); dW depends on the method's own tensors, for some methods also on W

A convolution is a linear layer whose inputs are patches, so its weight counts as ``(n_out, n_in * kernel size)``. A method is a
subclass with a name, default options, `create` and `update`; everything else is here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from deltahub.deltas.precision import added
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.layers import weight_fault
from deltahub.engine.weights import as_stored, linear_bias, linear_weight
from deltahub.errors import ConfigError, MergeError

METHODS: Final[dict[str, type[WeightUpdate]]] = {}  # by name, filled by the subclasses


class WeightUpdate(Insertion):
    """An insertion that updates the weight of a linear layer or a convolution.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        shape: the shape of the weight: ``(n_out, n_in)``, and the sizes of the kernel for a convolution.
        options: the method's options, all of them.

    Attributes:
        method: the name of the method.
        defaults: its options with their default values.
    """

    method: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        METHODS[cls.method] = cls

    def __init__(self, like: Tensor, shape: tuple[int, ...], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.shape = shape
        self.options = dict(options)
        self.create(like)

    @property
    def n_out(self) -> int:
        """Number of rows of the weight."""
        return self.shape[0]

    @property
    def n_in(self) -> int:
        """Number of columns of the weight, for a convolution with the sizes of the kernel."""
        return math.prod(self.shape[1:])

    # ----- a method's own part -----

    def create(self, like: Tensor) -> None:
        """Create the parameters, so that dW is zero."""
        raise NotImplementedError

    def update(self, weight: Tensor) -> Tensor:
        """Compute dW, ``(n_out, n_in)``.

        Args:
            weight: W, ``(n_out, n_in)``, if the method has `reads_weight`; otherwise an empty tensor of W's dtype and device.
        """
        raise NotImplementedError

    def shift(self, target: nn.Module) -> Tensor | None:
        """Compute db, ``(n_out,)``; None if the method leaves the bias alone."""
        return None

    # ----- common to all methods -----

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update's part to the output tensor, ``(..., n_out)``, or ``(..., n_out, *spatial)`` of a convolution."""
        x, own = first_input(args, kwargs), next(self.parameters()).dtype
        wide = torch.promote_types(output.dtype, own)
        change = self.update(self._weight(target, wide)).to(wide)
        shift = self.shift(target)
        shift = None if shift is None else shift.to(wide)
        if isinstance(target, _ConvNd):
            return added(output, target._conv_forward(x.to(wide), change.view(self.shape), shift))
        return added(output, F.linear(x.to(wide), change, shift))

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's weight, and its bias if that changes, with the update added."""
        if fault := weight_fault(target):
            raise MergeError(fault)
        weight = linear_weight(target)
        wide = torch.promote_types(weight.dtype, torch.float32)
        new = weight.to(wide) + self.update(weight.to(wide)).to(wide)
        values = {"weight": as_stored(target, new)}
        if (shift := self.shift(target)) is None:
            return values
        if (bias := linear_bias(target)) is None:
            raise MergeError("it has no bias of its own to add to")
        return {**values, "bias": bias.to(wide) + shift.to(wide)}

    def _weight(self, target: nn.Module, dtype: torch.dtype) -> Tensor:
        if not self.reads_weight:
            return next(self.parameters()).new_empty(0, dtype=dtype)
        return linear_weight(target).to(dtype)

    def __getitem__(self, option: str) -> Any:
        return self.options[option]

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer of the method."""
        tensor: Tensor = getattr(self, name)
        return tensor


def weight_shape(target: nn.Module, n_in: int, n_out: int) -> tuple[int, ...]:
    """Return the shape of a layer's weight: ``(n_out, n_in)``, or that of a convolution's kernel."""
    return tuple(target.weight.shape) if isinstance(target, _ConvNd) else (n_out, n_in)


def divided(width: int, by: int, what: str) -> int:
    """Return `width` divided into parts.

    Raises:
        ConfigError: it cannot be divided evenly.
    """
    if by < 1 or width % by:
        msg = f"A width of {width} cannot be divided into {what} of {by}. Choose a divisor of {width}."
        raise ConfigError(msg)
    return width // by
