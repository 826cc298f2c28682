"""Helpers for the methods with a bottleneck: activations, new layers, and checks of where one fits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from torch import Tensor, nn

from deltahub.engine.shapes import channel_dimension
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, TargetError

_STANDARD_DEVIATION: Final = 0.01  # of new weights; biases are zero, so an adapter starts close to the identity


def activation(name: str) -> nn.Module:
    """Return an activation by its name in OpenDelta or transformers.

    Raises:
        ConfigError: neither has it.
    """
    own_layers: dict[str, nn.Module] = {
        "relu": nn.ReLU(),
        "tanh": nn.Tanh(),
        "swish": nn.SiLU(),
        "gelu_new": nn.GELU(approximate="tanh"),
        "gelu_orig": nn.GELU(),
        "leakyrelu": nn.LeakyReLU(),
    }
    if name in own_layers:
        return own_layers[name]
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        msg = f"non_linearity {name!r} is unknown: choose one of {', '.join(sorted({*own_layers, *ACT2FN}))}."
        raise ConfigError(msg)
    layer: nn.Module = ACT2FN[name]
    return layer


def small_linear(n_in: int, n_out: int, like: Tensor) -> nn.Linear:
    """Return a linear layer with small random weights and zero bias, with the dtype and device of `like`."""
    layer = nn.Linear(n_in, n_out, dtype=like.dtype, device="meta").to_empty(device=like.device)
    if not like.is_meta:
        nn.init.normal_(layer.weight, std=_STANDARD_DEVIATION)
        nn.init.zeros_(layer.bias)
    return layer


def bottleneck_width(width: int, factor: int, address: str) -> int:
    """Return the width of a bottleneck, `factor` times narrower than its input.

    Raises:
        ConfigError: the factor is larger than the width.
    """
    if width < factor:
        msg = f"reduction_factor {factor} leaves nothing of the width {width} of {address}: it must be at most {width}."
        raise ConfigError(msg)
    return width // factor


def refuse_channels_first(targets: Iterable[Target]) -> None:
    """Raise if a layer's channels are not the last dimension of its output.

    Raises:
        TargetError: a layer has them in another dimension.
    """
    for target in targets:
        if channel_dimension(target.module) is not None:
            msg = (
                f"{target.name} is a {type(target.module).__name__}, whose channels are not the last dimension, where "
                "an adapter acts. Address a Linear or a LayerNorm, or use BitFitModel here."
            )
            raise TargetError(msg)
