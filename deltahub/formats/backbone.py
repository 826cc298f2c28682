"""The backbone of a delta to write in the format of another library: its modules, its tensors, and which tensors are shared.

A given backbone, as a folder or a model, answers everything. Without it the delta's record has names, shapes and hashes, and a
stand-in, a model of the same class with the default sizes of the class, has the kinds of modules and the tensors that can be shared.
Where neither is certain, an error asks for the backbone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from deltahub.checkpoint.address import Address
from deltahub.checkpoint.backbone_fit import backbone_folder
from deltahub.checkpoint.backbone_record import Leaf
from deltahub.checkpoint.checkpoint import Checkpoint
from deltahub.engine.layers import embed_scale, lookup_fault
from deltahub.engine.shapes import is_conv1d
from deltahub.engine.site import Site, is_delta_name
from deltahub.engine.skeleton import skeleton, stand_in
from deltahub.engine.structure.layouts import Part
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap
from deltahub.engine.structure.targets import find_targets
from deltahub.errors import CheckpointError, ConfigError, NoMatchError
from deltahub.formats.backbone_values import Values

ASK: Final = "Pass its folder or model id, or the model: backbone=... in Python, --backbone on the command line."


@dataclass(frozen=True)
class Backbone:
    """The known facts about a backbone.

    Attributes:
        class_name: the class of the model.
        shapes: the shapes of its tensors, by name; shared tensors have one name.
        values: the values of its tensors.
        named: the model id as given; empty if no backbone was given, or not by id.
        model: the backbone, possibly without values; None if it was not given.
    """

    class_name: str
    shapes: Mapping[str, tuple[int, ...]]
    values: Values
    named: str = ""
    model: nn.Module | None = None
    _parts: dict[str, dict[str, Part]] = field(default_factory=dict)

    @classmethod
    def of(cls, saved: Checkpoint, backbone: str | nn.Module | None, *, exact: bool = True) -> Backbone:
        """Collect the facts in a checkpoint and, if given, in its backbone.

        Args:
            exact: whether values that a writer reads must be those of the record.

        Raises:
            CheckpointError: the backbone is not found.
        """
        leaves: dict[str, Leaf] = {leaf.name: leaf for leaf in (saved.fingerprint.leaves if saved.fingerprint else ())}
        own_tensors = {name: tensor for name, tensor in saved.tensors.items() if not is_delta_name(name)}
        shapes = {name: leaf.shape for name, leaf in leaves.items()} | {
            n: tuple(t.shape) for n, t in own_tensors.items()
        }
        class_name = str(saved.document.get("backbone_class", ""))
        if backbone is None or isinstance(backbone, nn.Module):
            return cls(class_name, shapes, Values(leaves, own_tensors, None, backbone, exact), "", backbone)
        folder = backbone_folder(backbone)
        named = "" if Path(backbone).expanduser().is_dir() else backbone
        model = skeleton(folder, class_name)
        return cls(class_name, shapes, Values(leaves, own_tensors, folder, model, exact), named, model)

    @cached_property
    def stand_in(self) -> nn.Module | None:
        """A model of the same class on the meta device, with every tie between tensors that the class supports."""
        return stand_in(self.class_name)

    @property
    def model_or_stand_in(self) -> nn.Module | None:
        """The backbone, else its stand-in."""
        return self.stand_in if self.model is None else self.model

    @property
    def model_class(self) -> type[nn.Module] | None:
        """The class of the model, if known."""
        return None if self.model_or_stand_in is None else type(self.model_or_stand_in)

    # ----- modules -----

    @cached_property
    def modules(self) -> list[str]:
        """The names of all modules; a shared module has several."""
        if self.model is not None:
            return [name for name, _ in paths(self.model) if name]
        names = {within for name in self.shapes for within in _ancestors(name)}
        if self.stand_in is not None:
            names |= {name for name, _ in paths(self.stand_in) if name and not re.search(r"\d", name)}
        return sorted(names)

    @cached_property
    def _by_name(self) -> dict[str, nn.Module]:
        """The known modules by name; for a stand-in, which may have fewer blocks, with * for numbers."""
        if self.model is not None:
            return dict(paths(self.model))
        return {} if self.stand_in is None else {_numberless(name): module for name, module in paths(self.stand_in)}

    def module(self, name: str) -> nn.Module | None:
        """Return a module, or the stand-in's module of the same kind; None if it is not known.

        Raises:
            CheckpointError: the given backbone has no module of that name.
        """
        module = self._by_name.get(name if self.model is not None else _numberless(name))
        if module is None and self.model is not None:
            msg = f"This {type(self.model).__name__} has no {name}. Pass the backbone of this delta."
            raise CheckpointError(msg)
        return module

    def refuse_shared(self, modules: Collection[str]) -> None:
        """Refuse modules with several parents: PEFT puts its layer into one place, while a delta acts in all.

        Raises:
            ConfigError: a module is shared; the message names the first.
        """
        places: dict[int, int] = {}
        for parent in () if self.model_or_stand_in is None else self.model_or_stand_in.modules():
            for child in parent._modules.values():
                places[id(child)] = places.get(id(child), 0) + 1
        for name in modules:
            module = self.module(name)
            if module is not None and places.get(id(module), 0) > 1:
                msg = f"{name} is used in several places, and PEFT would adapt it in one of them. Load the delta with deltahub."
                raise ConfigError(msg)

    def widths(self, module: str) -> tuple[int, int] | None:
        """Return the input and output width of a linear layer or transformers' Conv1D; None for weights of another form."""
        shape, bias = self.shapes.get(f"{module}.weight", ()), self.shapes.get(f"{module}.bias")
        if len(shape) != 2 or (bias is not None and bias[0] not in shape):
            return None  # quantised, for example
        rows, columns = shape
        return (rows, columns) if self.is_turned(module) else (columns, rows)

    def is_turned(self, module: str) -> bool:
        """Return whether a layer is a Conv1D, which keeps its weight as ``(n_in, n_out)`` and always has a bias."""
        shape, bias = self.shapes.get(f"{module}.weight", ()), self.shapes.get(f"{module}.bias")
        if len(shape) != 2 or bias is None:
            return False
        if shape[0] != shape[1]:
            return bias[0] != shape[0]
        layer = self._by_name.get(module if self.model is not None else _numberless(module))
        return layer is not None and is_conv1d(layer)

    def is_embedding(self, module: str, n_in: int, n_out: int) -> bool:
        """Return whether the layer under an update from `n_in` to `n_out` is an embedding, with a weight ``(n_in, n_out)``.

        Raises:
            ConfigError: PEFT has no LoRA for this kind of layer, or the backbone is needed.
        """
        shape = self.shapes.get(f"{module}.weight")  # None for a weight shared under another name
        may_be = shape in ((n_in, n_out), None) and f"{module}.bias" not in self.shapes
        if self.model is None and not may_be:
            return False
        layer = self.module(module)
        if layer is None:
            msg = f"Only the backbone tells whether {module} is an embedding or a linear layer. {ASK}"
            raise ConfigError(msg)
        _check_kind(module, layer)
        return isinstance(layer, nn.Embedding)

    def parts(self, module: str, labels: Collection[str]) -> dict[str, Part]:
        """Return the parts of a fused layer, by label.

        Raises:
            ConfigError: no backbone was given.
            CheckpointError: the given backbone has no such parts.
        """
        if self.model is None:
            msg = (
                f"The delta acts on the {', '.join(sorted(labels))} rows of {module} alone, and only the backbone tells which rows "
                f"these are. {ASK}"
            )
            raise ConfigError(msg)
        if not self._parts:
            structure = StructureMap.of(self.model)
            for name, _ in paths(self.model):
                self._parts[name] = {part.label: part for _, part in structure.variants(name) if part}
        parts = self._parts.get(module, {})
        if isinstance(self.module(module), nn.MultiheadAttention):
            msg = f"{module} is an nn.MultiheadAttention, whose projections this format has no delta on. Keep it in DeltaHub's own format, or PEFT's."
            raise ConfigError(msg)
        if missing := sorted(set(labels) - parts.keys()):
            msg = f"{module} of the backbone has no {missing[0]} rows. Pass the backbone of this delta."
            raise CheckpointError(msg)
        return parts

    def meant(self, pattern: str, document: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """Return the modules, out of `modules`, that an address of a delta matches.

        Args:
            document: the delta's config, with `common_structure` and `exclude_modules`.

        Raises:
            ConfigError: the backbone is needed.
        """
        common = document.get("common_structure")
        if self.model is None and common is not True and MARK not in pattern.removeprefix("[r]"):
            address = Address(pattern)
            if common is False or any(address.matches(name) for name in self.modules):
                return {name for name in modules if address.matches(name)}
        model = self.model_or_stand_in
        if model is None or (self.model is None and re.search(r"^\[r\]|(?<![^.])\d+(?![^.])", pattern)):
            msg = f"Only the backbone tells which layers {pattern!r} means. {ASK}"
            raise ConfigError(msg)
        matches: set[str] = set()
        with suppress(NoMatchError):
            matches = {t.name for t in find_targets(model, (pattern,), document.get("exclude_modules") or (), common)}
        if self.model is not None:
            return matches & set(modules)
        like = {_numberless(name) for name in matches}
        return {name for name in modules if _numberless(name) in like}

    # ----- tensors -----

    def names_of(self, name: str) -> set[str]:
        """Return every name of a tensor: several if modules share it.

        Raises:
            ConfigError: the backbone is needed.
        """
        if self.model is not None:
            return self._shared.get(name, {name})
        group = self._shared.get(_numberless(name))
        if group is None or not group <= {_numberless(tensor_name) for tensor_name in self.shapes}:
            msg = f"The delta trained {name}, and only the backbone tells whether other layers share it. {ASK}"
            raise ConfigError(msg)
        return {name}

    @cached_property
    def _shared(self) -> dict[str, set[str]]:
        """Name of a tensor to all its names; for a stand-in with * for numbers."""
        if self.model_or_stand_in is None:
            return {}
        groups: dict[int, set[str]] = {}
        for name, tensor in tensors(self.model_or_stand_in):
            groups.setdefault(id(tensor), set()).add(name if self.model is not None else _numberless(name))
        return {name: group for group in groups.values() for name in group}

    def keys(self, module: str) -> list[str]:
        """Return the full names of the tensors inside a module.

        Raises:
            ConfigError: the backbone is needed.
        """
        layer = self.module(module)
        inside = [f"{module}.{name}" for name, _ in tensors(layer)] if layer is not None else []
        if self.model is not None:
            return inside
        recorded = [name for name in self.shapes if name.startswith(f"{module}.")]
        if layer is None or {_numberless(name) for name in inside} - {_numberless(name) for name in recorded}:
            msg = f"PEFT keeps {module} as a whole, and only the backbone tells what is in it. {ASK}"
            raise ConfigError(msg)
        return recorded

    def value(self, name: str) -> Tensor:
        """Return a tensor as the delta trained it, else as the backbone has it.

        Raises:
            ConfigError: no backbone was given.
            CheckpointError: the backbone has no such tensor.
            FingerprintMismatch: its values differ from those the delta was trained on.
        """
        if self.model is None and name not in self.values.trained:
            msg = (
                f"PEFT keeps {name.rpartition('.')[0]} as a whole, and the delta does not hold the whole module. {ASK}"
            )
            raise ConfigError(msg)
        return self.values.of(name, {name} if self.model is None else self.names_of(name))


def _check_kind(name: str, module: nn.Module) -> None:
    """Refuse a layer for which PEFT has no LoRA, or one that computes something else."""
    kind = type(module).__name__
    if isinstance(module, nn.Embedding) and (fault := lookup_fault(module) or _scale_fault(module)):
        msg = f"PEFT's LoRA would compute something else on {name}, a {kind}: {fault}. Load the delta with deltahub."
        raise ConfigError(msg)
    weight = getattr(module, "weight", None)
    quantised = not (
        isinstance(weight, nn.Parameter) and weight.is_floating_point()
    )  # PEFT supports these, or refuses them itself
    if not (quantised or isinstance(module, (nn.Linear, nn.Embedding)) or is_conv1d(module)):
        msg = f"{name} is a {kind}; PEFT has a LoRA for Linear, Conv1D and Embedding layers. Load the delta with deltahub."
        raise ConfigError(msg)


def _scale_fault(embedding: nn.Embedding) -> str:
    """Explain, in a clause, why PEFT would not scale a LoRA on an embedding as the embedding scales its rows; empty if it does."""
    scale: object = embed_scale(embedding)
    is_single_number = (
        scale is None or isinstance(scale, (int, float)) or (isinstance(scale, Tensor) and scale.numel() == 1)
    )
    return "" if is_single_number else "its embed_scale is not one number"


def paths(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module except those of deltas, under each of its names."""
    yield "", model
    for key, child in model._modules.items():
        if child is not None and not isinstance(child, Site):
            for name, module in paths(child):
                yield (f"{key}.{name}" if name else key), module


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in the `state_dict` of a model without its deltas, under each name."""
    for name, module in paths(model):
        persistent_buffers = {
            key: t for key, t in module._buffers.items() if key not in module._non_persistent_buffers_set
        }
        for key, tensor in {**module._parameters, **persistent_buffers}.items():
            if tensor is not None:
                yield (f"{name}.{key}" if name else key), tensor


def _ancestors(name: str) -> Iterator[str]:
    while name := name.rpartition(".")[0]:
        yield name


def _numberless(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
