"""Probes: a few inputs with the outputs they gave with and without a delta, kept to prove later that it acts, and acts the same.

A checkpoint keeps its probe in `probe.safetensors`:

    input.<name>      an input of the backbone's forward
    output.with       values of the output with the delta, float32; every k-th if the output has more than 4096
    output.without    the same values without it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from deltahub.checkpoint.checkpoint import tensors_in
from deltahub.engine.ledger import Entry, ledgers_in
from deltahub.engine.modules import modules_by_name
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError, ProbeError
from deltahub.handle.switching import attach, detach

_INPUT: Final = "input."
_WITH: Final = "output.with"
_WITHOUT: Final = "output.without"
_MOST_VALUES: Final = 4096  # values of an output to keep
_LARGEST: Final = 1 << 20  # bytes of inputs
_TOLERANCES: Final = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
}  # relative to the largest value; machines differ in rounding
_HALF: Final = 3e-2  # for half precision


@dataclass(frozen=True)
class Probe:
    """Inputs, and values of the backbone's output with and without a delta.

    Attributes:
        inputs: the arguments of the backbone's forward, by name.
        with_delta: values of the output with the delta, 1-d, float32.
        without: the same values without it.
    """

    inputs: Mapping[str, Tensor]
    with_delta: Tensor
    without: Tensor

    @classmethod
    def take(cls, backbone: nn.Module, entry: Entry, inputs: Mapping[str, Tensor]) -> Probe:
        """Run the backbone in eval mode with a delta and without it.

        Args:
            entry: the delta, which is attached.
            inputs: a few examples, at most 1 MB: ``{"input_ids": ..., "attention_mask": ...}``.

        Raises:
            ConfigError: the inputs are not tensors by name, too large or not of this backbone, or another delta is attached.
            CheckpointError: the delta changes none of the outputs, or they are not finite.
        """
        wrong = next((key for key, value in inputs.items() if not isinstance(value, Tensor)), None)
        if wrong is not None or not inputs:
            msg = f"probe takes tensors by the names of the backbone's arguments, got {wrong or 'none'}. Pass {{'input_ids': ...}}."
            raise ConfigError(msg)
        if (size := sum(value.nbytes for value in inputs.values())) > _LARGEST:
            msg = f"The inputs of the probe have {size:,} bytes; at most {_LARGEST:,} are kept. Pass fewer examples."
            raise ConfigError(msg)
        refuse_others(backbone, entry)
        acting = _values(backbone, inputs)
        with detached(backbone, entry):
            plain = _values(backbone, inputs)
        if not (acting.isfinite().all() and plain.isfinite().all()):
            msg = (
                "The outputs for the probe are not finite. Training diverged, or the inputs are not for this backbone."
            )
            raise CheckpointError(msg)
        if torch.equal(acting, plain):
            msg = (
                "The delta changes no output for the probe: it was not trained, or never acts on these inputs. Train it, pass other "
                "inputs, or save it without a probe."
            )
            raise CheckpointError(msg)
        return cls({name: value.detach().cpu() for name, value in inputs.items()}, acting, plain)

    def to_bytes(self) -> bytes:
        """Return the content of `probe.safetensors`."""
        inputs = {f"{_INPUT}{name}": value.contiguous() for name, value in self.inputs.items()}
        return safetensors.torch.save({**inputs, _WITH: self.with_delta, _WITHOUT: self.without})

    @classmethod
    def from_bytes(cls, data: bytes, file_name: str) -> Probe:
        """Read `probe.safetensors`.

        Raises:
            CheckpointError: it is malformed.
        """
        tensors = tensors_in(data, file_name)
        inputs = {name.removeprefix(_INPUT): value for name, value in tensors.items() if name.startswith(_INPUT)}
        outputs = [tensors[name].float() for name in (_WITH, _WITHOUT) if name in tensors]
        if not inputs or len(outputs) != 2 or not _differ(*outputs):
            msg = f"{file_name} is not a probe: expected inputs, and finite outputs that differ with and without the delta. Fetch it again."
            raise CheckpointError(msg)
        return cls(inputs, *outputs)

    def check(self, model: nn.Module) -> None:
        """Run a backbone with the delta loaded on it, and compare the outputs with those at the time of saving.

        The largest difference may be 1e-4 of the largest output (3e-2 in half precision), and less than half of the largest
        effect of the delta.

        Raises:
            ProbeError: the outputs differ, or the delta has no effect.
            ConfigError: the backbone does not take the inputs.
        """
        actual = _values(model, self.inputs)
        if actual.shape != self.with_delta.shape:
            raise ProbeError(f"the outputs have {len(actual)} values, expected {len(self.with_delta)}")
        error, effect = _largest(actual - self.with_delta), _largest(self.with_delta - self.without)
        dtype = next(
            (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()), torch.float32
        )
        limit = min(_TOLERANCES.get(dtype, _HALF) * _largest(self.with_delta), effect / 2)
        if not error <= limit:
            raise ProbeError(
                f"the outputs differ by {error:.3g} at most, where {limit:.3g} is allowed; the effect of the delta was {effect:.3g}"
            )


def refuse_others(backbone: nn.Module, own: Entry | None = None) -> None:
    """Refuse a backbone on which another delta acts: it would change the outputs too.

    Args:
        own: the delta that may act.

    Raises:
        ConfigError: another delta is attached.
    """
    others = {
        entry.name
        for _, _, ledger in ledgers_in(modules_by_name(backbone))
        for entry in ledger.entries.values()
        if entry.attached and entry is not own
    }
    if others:
        msg = f"{min(others)!r} is attached to the backbone, so its outputs are not those of one delta alone. Call detach() on it first."
        raise ConfigError(msg)


def _values(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return values of the model's output for some inputs, in eval mode, on the CPU in float32."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with evaluating(model), torch.no_grad():
        output = _first_floats(_run(model, {name: value.to(device) for name, value in inputs.items()}))
    values = output.detach().reshape(-1)
    return values[:: -(-len(values) // _MOST_VALUES)].cpu().float().clone()


def _run(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """Call a model.

    Raises:
        ConfigError: it does not take such inputs.
    """
    try:
        return model(**inputs)
    except DeltaHubError:
        raise
    except Exception as error:  # a model may raise anything for inputs of another model
        shapes = ", ".join(f"{name} {list(value.shape)} of {value.dtype}" for name, value in inputs.items())
        msg = f"{type(model).__name__} does not take the inputs of the probe, {shapes}: {type(error).__name__}: {error}. Pass inputs of its forward."
        raise ConfigError(msg) from error


def _first_floats(output: Any) -> Tensor:
    """Return the logits of an output, else its hidden states, else its first tensor of floats.

    Raises:
        ConfigError: it has none.
    """
    if isinstance(output, Mapping):
        output = [output.get("logits"), output.get("last_hidden_state"), *output.values()]
    for value in output if isinstance(output, list | tuple) else [output]:
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            return value
    msg = (
        f"The backbone returned {type(output).__name__} without a tensor of floats, so its outputs cannot be compared."
    )
    raise ConfigError(msg)


def _differ(acting: Tensor, plain: Tensor) -> bool:
    """Return whether two lists of values are finite, of one length and not equal."""
    finite = bool(acting.isfinite().all() and plain.isfinite().all())
    return acting.dim() == 1 and acting.shape == plain.shape and finite and not torch.equal(acting, plain)


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


@contextmanager
def detached(backbone: nn.Module, entry: Entry) -> Iterator[None]:
    """Detach a delta, and attach it again afterwards."""
    detach(backbone, entry, None, reset_state_dict=False)
    try:
        yield
    finally:
        attach(backbone, entry, None, reset_state_dict=False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; each module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
