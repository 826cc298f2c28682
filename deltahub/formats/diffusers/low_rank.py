"""Conversion of LoRA, and of DoRA with a magnitude for each output.

y = W x + b + s B A x               s = alpha / r, 1 without an alpha
LoCon with a core                   A = T x A', a convolution of the core's kernel after one of single points

A and B of a convolution are kernels, those of its LoRA single points in B.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.diffusers.keys import ALPHA, BIAS, DOWN, MAGNITUDE, MIDDLE, SCALE, UP
from deltahub.formats.diffusers.parts import WAY_OUT
from deltahub.formats.peft.lora_delta import LowRank, lora_delta
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter

LEAVES: Final = frozenset({ALPHA, BIAS, DOWN, MAGNITUDE, MIDDLE, SCALE, UP})


def lora(adapter: SavedAdapter, alphas: Mapping[str, float]) -> Converted:
    """Convert a LoRA.

    Args:
        adapter: its tensors by layer.
        alphas: the alpha of each layer; empty if the file has none.

    Raises:
        CheckpointError: a tensor is missing, or does not fit its layer.
        ConfigError: no delta computes the same.
    """
    updates = {layer: _update(adapter, layer, alphas.get(layer)) for layer in adapter.modules}
    magnitudes = {layer for layer, update in updates.items() if update.magnitude is not None}
    if magnitudes and magnitudes != updates.keys():
        plain = min(updates.keys() - magnitudes)
        msg = f"The file is a DoRA on some layers and a LoRA on others, such as {plain}, which one delta cannot be. {WAY_OUT}"
        raise ConfigError(msg)
    return lora_delta(updates, adapter)


def _update(adapter: SavedAdapter, layer: str, alpha: float | None) -> LowRank:
    down, up, middle = (adapter.get(layer, leaf) for leaf in (DOWN, UP, MIDDLE))
    if down is None or up is None:
        msg = f"The file has only a part of the LoRA on {layer}: its {DOWN if down is None else UP} is missing. Fetch it again."
        raise CheckpointError(msg)
    down, up = flat_factors(adapter.layer(layer), layer, down, up, middle)
    rank = len(down)
    bias = adapter.get(layer, BIAS)
    if bias is not None and bias.shape != (len(up),):
        msg = f"The file's bias of B for {layer} is {list(bias.shape)}, expected {[len(up)]}. Fetch it again."
        raise CheckpointError(msg)
    scale = 1.0 if alpha is None else alpha / rank
    return LowRank(down, up, scale, _magnitude(adapter, layer, len(up)), bias)


def flat_factors(
    module: Any, layer: str, down: Tensor, up: Tensor, middle: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return A ``(r, n_in)`` and B ``(n_out, r)`` as matrices; in the file those of a convolution are kernels, and so may others be.

    Args:
        module: the layer.
        layer: its name, for messages.
        middle: the core of a convolution's LoRA, ``(r, r, *kernel)``.

    Raises:
        CheckpointError: they do not fit each other or the layer.
        ConfigError: the layer is a convolution on which a delta has no LoRA.
    """
    kernel = tuple(module.kernel_size) if isinstance(module, _ConvNd) else ()
    shapes = [list(down.shape), list(up.shape), *([] if middle is None else [list(middle.shape)])]
    if middle is not None and _fits_core(down, middle):
        down = torch.einsum("ij...,jr->ir...", middle, down.flatten(1))
        middle = None
    fits = middle is None and down.dim() >= 2 <= up.dim() and up.shape[1] == len(down)
    if fits:
        points = set(up.shape[2:]) <= {1}  # B mixes the channels at single points
        inner = tuple(down.shape[2:])
        fits = points and (inner == kernel or set(inner) | set(kernel) <= {1})
    if not fits:
        msg = f"The tensors of the LoRA on {layer} have the shapes {' and '.join(map(str, shapes))}, which do not make an update of this layer. Fetch it again."
        raise CheckpointError(msg)
    if kernel and not (
        module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros" and not module.transposed
    ):
        msg = f"The file acts on {layer}, a {type(module).__name__} with groups, dilation or padding of another kind, where a delta has no LoRA. {WAY_OUT}"
        raise ConfigError(msg)
    return down.flatten(1), up.flatten(1)


def _fits_core(down: Tensor, middle: Tensor) -> bool:
    """Return whether a core belongs behind a convolution of single points."""
    return (
        middle.dim() >= 3
        and down.dim() >= 2
        and set(down.shape[2:]) <= {1}
        and tuple(middle.shape[:2]) == (len(down), len(down))
    )


def _magnitude(adapter: SavedAdapter, layer: str, n_out: int) -> Tensor | None:
    """Return DoRA's magnitudes, one for each output, ``(n_out,)``; None if it is a plain LoRA.

    Raises:
        CheckpointError: there are two of them, or of another shape.
        ConfigError: they are of the inputs, or of a convolution.
    """
    scale, vector = adapter.get(layer, SCALE), adapter.get(layer, MAGNITUDE)
    if scale is None and vector is None:
        return None
    if scale is not None and vector is not None:
        msg = f"The file holds two magnitudes for {layer}. Fetch it again."
        raise CheckpointError(msg)
    if isinstance(adapter.layer(layer), _ConvNd):
        msg = f"The file is a DoRA on {layer}, a convolution, on which DeltaHub has none. {WAY_OUT}"
        raise ConfigError(msg)
    found = scale if scale is not None else vector
    assert found is not None
    shape = tuple(found.shape)
    if scale is not None and shape != (n_out, 1) and shape[:1] == (1,):
        msg = f"The file is a DoRA with a magnitude for each input of {layer} (wd_on_output=False), which DeltaHub does not compute. {WAY_OUT}"
        raise ConfigError(msg)
    if math.prod(shape) != n_out or shape[:1] != (n_out,):
        msg = f"The file's magnitudes for {layer} are {list(shape)}, expected {[n_out, 1] if scale is not None else [n_out]}. Fetch it again."
        raise CheckpointError(msg)
    return found.flatten()
