"""Helpers for the methods with a bottleneck: activations, new layers, and checks of where one fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from torch import Tensor, nn

from deltahub.deltas.precision import added
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input, map_hidden, with_first_input
from deltahub.engine.shapes import channel_dimension
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, TargetError

_STANDARD_DEVIATION: Final = 0.01  # of new weights; biases are zero, so an adapter starts close to the identity


class HiddenUpdate(Insertion):
    """The base class of insertions that add an update to the hidden state of a module's output."""

    def update(self, hidden: Tensor) -> Tensor:
        """Compute the update of a hidden state, both ``(..., width)``."""
        raise NotImplementedError

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the hidden state, ``(..., width)``; other outputs of the module pass through."""
        return map_hidden(output, lambda hidden: added(hidden, self.update(hidden)))


class InputUpdate(HiddenUpdate):
    """The base class of insertions that compute an update from a module's output and add it to the module's input.

        y = f(x + g(f(x)))

    The inner f is the module alone, without other deltas in the same place.
    """

    reads_weight = True

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Change the input, ``(..., width)``, which is as wide as the output."""
        x, update = first_input(args, kwargs), None

        def note(hidden: Tensor) -> Tensor:
            nonlocal update
            update = self.update(hidden)
            return hidden

        map_hidden(target.forward(*args, **kwargs), note)
        if update is None or x.shape != update.shape:
            msg = (
                f"A delta with at_input adds to the input of a {type(target).__name__}, which is {list(x.shape)}, and its output has another "
                "shape. Address modules that keep the shape, such as a LayerNorm."
            )
            raise TargetError(msg)
        return with_first_input(args, kwargs, added(x, update))

    after = Insertion.after


def without_defaults(document: Mapping[str, Any], **defaults: Any) -> dict[str, Any]:
    """Leave out options at their default, given by name: those that older releases do not know."""
    return {
        key: value
        for key, value in document.items()
        if key not in defaults or value != defaults[key] or type(value) is not type(defaults[key])
    }


def refuse_parts_at_input(target: Target) -> None:
    """Raise if only some parts of a fused layer are meant: their input belongs to all parts.

    Raises:
        TargetError: this is so.
    """
    if target.parts:
        msg = f"at_input needs a whole module, and only parts of {target.name} are meant. Address the whole module."
        raise TargetError(msg)


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
