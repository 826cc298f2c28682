"""Comparison of a delta in its new format with the delta that it was made from: by the outputs of the backbone.

The largest difference of an output may be

    min(sqrt(eps) * largest output, effect / 2)       eps: of the dtype of the outputs; effect: largest change by the delta

The first term allows for sums of rounded products in another order; with the second, a delta that was lost does not pass for one with a
small effect. A dequantised model has rounded weights, and layers that round their inputs no more: there only the second term counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.dummy_inputs import possible_inputs
from deltahub.engine.ledger import Entry
from deltahub.errors import CheckpointError, ConfigError, VerificationError
from deltahub.handle.probe import detached, evaluating, refuse_others

_LENGTH: Final = 12  # tokens of a text
_SEED: Final = 0


@dataclass(frozen=True)
class Comparison:
    """The outputs of a delta in its new format, compared with those before.

    Attributes:
        difference: the largest difference of an output.
        bound: the largest difference allowed.
        effect: the largest change of an output by the delta; None if it changes their number, as a prompt does.
    """

    difference: float
    bound: float
    effect: float | None


@dataclass(frozen=True)
class Reference:
    """The outputs that a delta has to give in its new format.

    Attributes:
        inputs: the arguments of the backbone's forward, by name.
        acting: the outputs with the delta, 1-d.
        effect: the largest change by the delta; None if it changes the number of outputs.
        bound: the largest difference allowed.
    """

    inputs: Mapping[str, Tensor]
    acting: Tensor
    effect: float | None
    bound: float

    @classmethod
    def take(
        cls, backbone: nn.Module, entry: Entry, inputs: Mapping[str, Tensor] | None, *, is_exact: bool = True
    ) -> Reference:
        """Run a backbone with a delta and without it, in eval mode.

        Args:
            entry: the delta, which is attached.
            inputs: arguments of the backbone's forward; None for random tokens, pixels or samples.
            is_exact: whether the other model has the same weights, so that the first term of the bound holds; a dequantised one has not.

        Raises:
            CheckpointError: the delta changes none of the outputs, or they are not finite.
            ConfigError: the inputs are not for this backbone, or another delta is attached.
        """
        refuse_others(backbone, entry)
        with detached(backbone, entry):
            inputs, plain = _run_on_random(backbone) if inputs is None else (inputs, outputs(backbone, inputs))
        acting = outputs(backbone, inputs)
        if not (acting.isfinite().all() and plain.isfinite().all()):
            msg = "The outputs of the backbone with the delta are not finite, so the delta cannot be verified. Training diverged."
            raise CheckpointError(msg)
        effect = _largest(acting - plain) if acting.shape == plain.shape else None  # a prompt adds outputs
        if effect == 0:
            msg = (
                "The delta changes no output of the backbone, so there is nothing to verify: it was not trained, or does not act on these "
                "inputs. Train it, pass inputs of your own (verify={...} in Python), or write it unverified."
            )
            raise CheckpointError(msg)
        bound = math.sqrt(torch.finfo(acting.dtype).eps) * _largest(acting)
        if effect is not None:
            bound = min(bound, effect / 2) if is_exact else effect / 2
        return cls(inputs, acting, effect, bound)

    def compare(self, model: nn.Module) -> Comparison:
        """Compare the outputs of a model with these.

        Raises:
            VerificationError: they differ by more than is allowed.
        """
        actual = outputs(model, self.inputs)
        if actual.shape != self.acting.shape:
            msg = f"The converted delta gives {len(actual)} output values, and its source {len(self.acting)}. Nothing was written."
            raise VerificationError(msg)
        difference = _largest(actual.to(self.acting.dtype) - self.acting)
        if not difference <= self.bound:  # also if it is not a number
            effect = "" if self.effect is None else f"; the effect of the delta is {self.effect:.3g}"
            msg = (
                f"The outputs of the converted delta differ by {difference:.3g} from those of its source, where {self.bound:.3g} is allowed{effect}. "
                "Nothing was written. Convert on a backbone of a wider precision if it is in half precision."
            )
            raise VerificationError(msg)
        return Comparison(difference, self.bound, self.effect)


@torch.no_grad()
def outputs(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return all floating-point values that a model returns, 1-d, in eval mode, on the CPU.

    Raises:
        ConfigError: it does not take the inputs, or returns no floats.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        try:
            result = model(**{name: value.to(device) for name, value in inputs.items()})
        except Exception as error:
            msg = f"{type(model).__name__} cannot be run on {', '.join(inputs)} to verify the delta: {error}. Pass its inputs: verify={{...}}."
            raise ConfigError(msg) from error
    values = [tensor.detach().cpu().reshape(-1) for tensor in _floats(result)]
    if not values:
        msg = f"{type(model).__name__} returned no tensor of floats, so its outputs cannot be compared."
        raise ConfigError(msg)
    return torch.cat(values)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore which tensors of a model train, and the mode of each module, which loading a delta changes."""
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
        for module, training in modes:
            module.training = training


def _floats(result: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in the output of a model, without its cache."""
    if isinstance(result, Tensor):
        if result.is_floating_point():
            yield result
    elif isinstance(result, Mapping):
        for key, value in result.items():
            if key != "past_key_values":
                yield from _floats(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from _floats(value)


def _run_on_random(backbone: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
    """Return random inputs that a backbone runs on, and its outputs.

    Raises:
        ConfigError: none are known for it.
    """
    fault = ConfigError(f"No inputs are known for a {type(backbone).__name__}. Pass some of your own: verify={{...}}.")
    for shapes in possible_inputs(backbone, length=_LENGTH):
        inputs = {name: _random(name, shape, backbone) for name, shape in shapes.items()}
        try:
            return inputs, outputs(backbone, inputs)
        except ConfigError as error:
            fault = error
    raise fault


def _random(name: str, like: Tensor, backbone: nn.Module) -> Tensor:
    """Return random values: token ids of the vocabulary, boxes, or normal floats.

    Args:
        like: a tensor of the shape and kind, on the meta device.
    """
    generator = torch.Generator().manual_seed(_SEED)
    if like.is_floating_point():
        dtype = next((p.dtype for p in backbone.parameters() if p.is_floating_point()), torch.float32)
        return torch.randn(like.shape, generator=generator).to(dtype)
    if name == "bbox":
        corner = torch.randint(0, 100, (*like.shape[:-1], 2), generator=generator)
        return torch.cat([corner, corner + 50], -1)
    special = _special_tokens(backbone)
    allowed = [token for token in range(_vocabulary(backbone)) if token not in special] or [0]
    tokens = torch.tensor(allowed)[torch.randint(len(allowed), like.shape, generator=generator)]
    end = getattr(getattr(backbone, "config", None), "eos_token_id", None)
    if name == "input_ids" and isinstance(end, int) and getattr(backbone.config, "is_encoder_decoder", False):
        tokens[:, -1] = end  # where some classifiers read
    return tokens


def _vocabulary(backbone: nn.Module) -> int:
    """Return the number of tokens that a backbone has embeddings for."""
    get: Callable[[], Any] | None = getattr(backbone, "get_input_embeddings", None)
    try:
        count = getattr(get() if get else None, "num_embeddings", None)
    except (AttributeError, NotImplementedError):
        count = None
    sizes = [count, getattr(getattr(backbone, "config", None), "vocab_size", None)]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=2)


def _special_tokens(backbone: nn.Module) -> set[int]:
    """Return the ids that a config names: of padding, of images, and so on."""
    named = vars(getattr(backbone, "config", object)).items()
    return {value for key, value in named if key.endswith(("token_id", "token_index")) and isinstance(value, int)}


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if len(values) else 0.0
