"""The part of a file that belongs to a backbone: one file often holds the updates of a U-Net and of its text encoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from deltahub.engine.shapes import linear_shape
from deltahub.errors import CheckpointError, ConfigError, TargetError
from deltahub.formats.diffusers.keys import ALPHA, DOWN, MIDDLE, UP, Key, parse_key
from deltahub.formats.diffusers.layers import Layers
from deltahub.formats.peft.tensor_names import Names
from deltahub.log import LOGGER

WAY_OUT: Final = "Load it with the program that it was made for."
_CONVERT: Final = (
    "Load its own backbone. If its layers have the names of another program, diffusers can rewrite many such files: "
    "load_lora_weights() on a pipeline, then save_lora_weights()."
)


@dataclass
class Part:
    """The updates of one model in a file.

    Attributes:
        model: the model as the file calls it; empty if it does not.
        flat: whether the file is kohya's or of LyCORIS.
        layers: the tensors of each layer, by plain name in the backbone and by own name.
        missing: names of layers that the backbone does not have.
    """

    model: str
    flat: bool
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, name: str, leaf: str, tensor: Tensor) -> None:
        """Add a tensor.

        Raises:
            CheckpointError: there is another for the same place.
        """
        if leaf in self.layers.setdefault(name, {}):
            msg = f"The file holds two tensors for {name} ({leaf}). Save one of the deltas in it alone."
            raise CheckpointError(msg)
        self.layers[name][leaf] = tensor


def own_part(saved: Mapping[str, Tensor], names: Names) -> Part:
    """Return the part of a file that belongs to a backbone; the others are named in a warning.

    Raises:
        ConfigError: the file holds tensors of an unknown kind.
        CheckpointError: no part belongs to the backbone, or it cannot be told which one.
    """
    parts = _sorted(saved, names)
    kind = type(names.backbone).__name__
    fitting = [part for part in parts.values() if not part.missing and not _misfit(part, names)]
    if len(fitting) > 1:
        models = " and ".join(part.model or "an unnamed model" for part in fitting)
        msg = f"The file holds updates of {models}, and both fit this {kind}. Save the part of this model alone."
        raise CheckpointError(msg)
    if not fitting:
        raise _nothing_fits(parts, names)
    if others := [f"{part.model} ({_count(part)})" for part in parts.values() if part is not fitting[0]]:
        LOGGER.warning(
            "The file also holds updates of other models, which this %s does not have; load them on theirs. Left out: %s",
            *(kind, ", ".join(others)),
        )
    return fitting[0]


def _sorted(saved: Mapping[str, Tensor], names: Names) -> dict[str, Part]:
    """Sort the tensors of a file by model, layer and own name."""
    layers, parts = Layers(names.modules), dict[str, Part]()
    for name, tensor in saved.items():
        key = parse_key(name)
        if key is None:
            msg = f"The file holds {name:.200} {list(tensor.shape)}, which is not part of a LoRA, LoHa or LoKr known here. {WAY_OUT}"
            raise ConfigError(msg)
        _check_numbers(name, key, tensor)
        if layers.holds(f"{key.model}.{key.layer}"):  # the backbone holds several models
            key = replace(key, model="", layer=f"{key.model}.{key.layer}")
        part = parts.setdefault(key.model, Part(key.model, key.flat))
        layer = layers.find(key)
        if layer is None:
            part.missing.append(key.layer)
        else:
            part.add(layer, key.leaf, tensor)
    return parts


def _check_numbers(name: str, key: Key, tensor: Tensor) -> None:
    """Refuse a tensor that no method computes with; an alpha may be a whole number."""
    whole = key.leaf == ALPHA and not tensor.is_complex() and tensor.element_size() > 1
    if not (tensor.is_floating_point() or whole):
        msg = f"The file holds {tensor.dtype} for {name:.200}; expected floats. Fetch it again."
        raise CheckpointError(msg)
    if key.leaf != ALPHA and tensor.dim() < 1:
        msg = f"The file holds a single number for {name:.200}; expected a tensor. Fetch it again."
        raise CheckpointError(msg)


def _count(part: Part) -> str:
    count = len(part.layers) + len(set(part.missing))
    return f"{count} layer{'s' if count > 1 else ''}"


def _nothing_fits(parts: Mapping[str, Part], names: Names) -> CheckpointError:
    """Return the error for a file without a part that fits: it is about the part that comes closest."""
    kind = type(names.backbone).__name__
    part = max(parts.values(), key=lambda part: len(part.layers) / (len(part.layers) + len(set(part.missing))))
    of_model = f" of {part.model}" if part.model else ""
    if not part.layers:
        return CheckpointError(
            f"The file holds updates{of_model} ({_count(part)}, such as {part.missing[0]:.200}), and this {kind} has none of these layers. {_CONVERT}"
        )
    if part.missing:
        return CheckpointError(
            f"The file holds updates{of_model} for {_count(part)}, and this {kind} lacks {len(set(part.missing))} of them, such as "
            f"{part.missing[0]:.200}. {_CONVERT}"
        )
    return CheckpointError(f"The file's updates{of_model} do not fit this {kind}: {_misfit(part, names)}. {_CONVERT}")


def _misfit(part: Part, names: Names) -> str:
    """Return why a part does not fit the layers of a backbone, as a clause; empty if it does."""
    for name, leaves in part.layers.items():
        shape = layer_shape(name, names)
        if not shape:
            return f"{name} is a {type(names.modules[name]).__name__}, expected a linear layer or a convolution"
        expected, actual = (shape[0], math.prod(shape[1:])), _widths(leaves)
        if actual and actual != expected:
            return f"the update of {name} is {list(actual)}, expected {list(expected)}"
    return ""


def layer_shape(name: str, names: Names) -> tuple[int, ...]:
    """Return the shape of a layer's weight as ``(n_out, n_in)``, or that of a convolution's kernel; empty for other layers."""
    module = names.modules[name]
    if isinstance(module, _ConvNd):
        return tuple(module.weight.shape)
    try:
        n_in, n_out = linear_shape(name, module)
    except TargetError:
        return ()
    return () if hasattr(module, "num_embeddings") else (n_out, n_in)


def _widths(leaves: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the widths of a layer's update by its tensors, ``(n_out, n_in)`` with the sizes of a kernel; None if they do not tell."""
    if any(tensor.dim() < 2 for leaf, tensor in leaves.items() if leaf.startswith(("hada", "lokr", DOWN, "lora_mid"))):
        return None
    if leaves.keys() >= {DOWN, UP}:
        return len(leaves[UP]), _columns(leaves[DOWN], leaves.get(MIDDLE))
    if leaves.keys() >= {"hada_w1_a", "hada_w1_b"}:
        return _product(leaves, "hada_w1", "hada_t1")
    first = _product(leaves, "lokr_w1", "")
    second = _product(leaves, "lokr_w2", "lokr_t2")
    return (first[0] * second[0], first[1] * second[1]) if first and second else None


def _columns(matrix: Tensor, core: Tensor | None = None) -> int:
    return math.prod(matrix.shape[1:]) * (1 if core is None else math.prod(core.shape[2:]))


def _product(leaves: Mapping[str, Tensor], name: str, core_name: str) -> tuple[int, int] | None:
    """Return the widths of a matrix that is whole or a product; with a core its first factor is turned."""
    if name in leaves:
        return len(leaves[name]), _columns(leaves[name])
    if not leaves.keys() >= {f"{name}_a", f"{name}_b"}:
        return None
    up, down, core = leaves[f"{name}_a"], leaves[f"{name}_b"], leaves.get(core_name)
    return (len(up) if core is None else up.shape[1]), _columns(down, core)
