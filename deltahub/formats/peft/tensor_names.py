"""Mapping of the keys in PEFT's files to modules and tensors of a backbone.

base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight            as PEFT saves it
module.base_model.model.[...]q_proj.lora_A.default.weight                 in the state dict of a training run (DDP, FSDP, DeepSpeed)
base_model.model._orig_mod.[...]                                          from a compiled model
base_model.model.language_model.model.layers.0.[...]                      from transformers 4, with older module names
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.fingerprint import backbone_tensors
from deltahub.engine.modules import modules_by_name, running_statistics
from deltahub.engine.site import is_delta_name
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.peft.body_names import BodyNames
from deltahub.formats.peft.expert_names import ExpertPlace, expert_place

_WRAPPERS: Final = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_WRAPPED: Final = re.compile("|".join(sorted(_WRAPPERS)))
_ADAPTER: Final = r"(?:\.(?!(?:weight|bias)$)[^.]+)?"  # the adapter's name
_ROWS: Final = re.compile(rf"(?P<module>.+?)\.(?:token_adapter\.)?trainable_tokens_delta{_ADAPTER}")
_SAVED_MODULE: Final = ".modules_to_save."
_INNER: Final = ".base_layer"
Leaves = dict[tuple[str, str], Tensor]


class LeafNames:
    """The names of a method's tensors in a file, and their own names.

    Args:
        leaves: name in the file, after that of the module and without that of the adapter, to own name.
        shared: those of no single module.
        wraps_once: whether PEFT puts one wrapper around the backbone, as for prompts, and not two.
    """

    def __init__(self, leaves: Mapping[str, str], *, shared: Collection[str] = (), wraps_once: bool = False) -> None:
        self.wraps_once = wraps_once
        self._own = [*leaves.values(), *shared]
        module = r"(?P<module>.+)\." if leaves else ""
        own = [f"{module}(?:{'|'.join(self._choice(k, leaf) for k, leaf in enumerate(leaves))})"] if leaves else []
        loose = [rf"(?:base_model\.)?{self._choice(k, leaf)}" for k, leaf in enumerate(shared, len(leaves))]
        self._pattern = re.compile("|".join([*loose, *own]))

    @staticmethod
    def _choice(number: int, leaf: str) -> str:
        head, dot, rest = leaf.partition(".")
        return rf"(?P<leaf{number}>{head}{_ADAPTER}{re.escape(dot)}{rest})"

    def split(self, name: str) -> tuple[str, str] | None:
        """Return the module and the own name of a tensor of the method; None for any other tensor."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        own = self._own[int(str(match.lastgroup).removeprefix("leaf"))]
        return match.groupdict().get("module") or "", own


def plain(name: str) -> str:
    """Remove the parts that module wrappers add to a name."""
    if not _WRAPPED.search(name):
        return name
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _every_parameter(backbone: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a backbone under each of their names, without those of deltas.

    Args:
        modules: its modules by name, each once.
    """
    places = sum(child is not None for module in modules.values() for child in module._modules.values())
    if places == len(modules) - 1:  # no module is in two places
        for prefix, module in modules.items():
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    yield f"{prefix}.{key}" if prefix else key, parameter
        return
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        if not is_delta_name(name):
            yield name, parameter


@dataclass
class Names:
    """The names in a backbone, free of wrappers.

    Attributes:
        backbone: the model.
        modules: plain name to module.
        real: plain name of a module to its name in the backbone.
        tensors: plain name of a tensor, any of the names of a tied one, to its first name in the backbone.
        body: how the names in the adapter differ, if one of both has a head that the other has not.
    """

    backbone: nn.Module
    modules: dict[str, nn.Module] = field(default_factory=dict)
    real: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    body: BodyNames = field(default_factory=BodyNames)

    @classmethod
    def of(cls, backbone: nn.Module) -> Names:
        """Collect the names in a backbone; its deltas do not count."""
        names = cls(backbone)
        modules = modules_by_name(backbone)  # walked once, as a load has to be fast
        for name, module in modules.items():
            plain_name = plain(name)
            names.modules[plain_name], names.real[plain_name] = module, name
        first: dict[int, str] = {}
        tensors = (*running_statistics(backbone, modules=modules).items(), *backbone_tensors(backbone, modules))
        for name, tensor in tensors:
            names.tensors[plain(name)] = first[id(tensor)] = name
        for name, parameter in _every_parameter(backbone, modules):
            if id(parameter) in first:
                names.tensors[plain(name)] = first[id(parameter)]
        return names

    def shared_names(self, name: str) -> set[str]:
        """Return all plain names of a tensor, given its first name."""
        return {alias for alias, first in self.tensors.items() if first == name}

    def tied_with_embeddings(self) -> set[str]:
        """Return the input embeddings and the modules that share their weight."""
        get = getattr(self.backbone, "get_input_embeddings", None)
        embeddings = get() if callable(get) else None
        embedding_name = next((name for name, module in self.modules.items() if module is embeddings), None)
        shared = (
            self.shared_names(self.tensors[f"{embedding_name}.weight"])
            if f"{embedding_name}.weight" in self.tensors
            else set()
        )
        return {name.removesuffix(".weight") for name in shared}

    @cached_property
    def _conversions(self) -> tuple[list[Any], list[Any]]:
        """Transformers' renamings and conversions of tensors of release 4."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        steps = get_model_conversion_mapping(self.backbone)  # type: ignore[arg-type]  # any module with a config will do
        renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        return renamings, [step for step in steps if isinstance(step, WeightConverter)]

    def _rename(self, name: str) -> tuple[str, str | None]:
        """Turn a tensor's name of release 4 into today's name and the pattern of experts fused into it."""
        from transformers.core_model_loading import rename_source_key

        return rename_source_key(name, *self._conversions)

    def expert(self, name: str) -> ExpertPlace | None:
        """Return the part of a parameter that was the weight of a module in release 4; None if it is a module."""
        if name in self.modules or ".experts." not in f".{name}":
            return None
        renamed, source = self._rename(f"{name}.weight")
        if source is None or renamed not in self.tensors:
            return None
        return expert_place(f"{name}.weight", renamed, source, self._conversions[1])

    def module(self, name: str) -> str:
        """Return the plain name of a module in this backbone.

        Raises:
            CheckpointError: the backbone has no such module.
            ConfigError: the module is part of a mixture of experts.
        """
        if name in self.modules:
            return name
        renamed, fused = self._rename(f"{name}.weight")
        if (module_name := renamed.removesuffix(".weight")) in self.modules and not fused:
            return module_name
        kind = type(self.backbone).__name__
        if fused or ".experts" in name:
            msg = (
                f"The adapter acts on {name}, which is of experts of a mixture (MoE): this {kind} keeps those as one parameter, on which no "
                "LoRA acts. Load it with PEFT."
            )
            raise ConfigError(msg)
        msg = f"The adapter sits on {name}, which this {kind} does not have. Load its own backbone."
        raise CheckpointError(msg)

    def tensor(self, name: str) -> str | None:
        """Return the plain name in this backbone of a tensor that an adapter replaces; None if the backbone has none."""
        names = [name.replace(".base_layer.", ".").replace(_SAVED_MODULE, ".")]
        if _SAVED_MODULE in name:  # followed by the adapter's name
            module, _, rest = name.partition(_SAVED_MODULE)
            names.append(f"{module}.{rest.partition('.')[2]}")
        return next((name for name in names if name in self.tensors), None) or next(
            (renamed for renamed, fused in map(self._rename, names) if renamed in self.tensors and not fused), None
        )


@dataclass
class Sorted:
    """The tensors of a file.

    Attributes:
        leaves: the method's, by plain name of the module and own name; no module for shared ones.
        rows: single rows of embeddings that the adapter trains, by plain name of the module.
        own: those that replace the backbone's, by plain name in the backbone.
        experts: the method's for layers that are parts of a parameter now, by own name.
        outside: names of those for a head that the backbone has not.
    """

    leaves: Leaves = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Tensor] = field(default_factory=dict)
    experts: dict[ExpertPlace, dict[str, Tensor]] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)


def sort_tensors(saved: Mapping[str, Tensor], leaf_names: LeafNames, names: Names) -> Sorted:
    """Sort a file's tensors.

    Raises:
        CheckpointError: a module or tensor is not in the backbone, or a place has two tensors.
        ConfigError: a module is part of a mixture of experts.
    """
    found = Sorted()
    # With bias="all" PEFT saves the biases of replaced layers too.
    bare = {key: _bare(key, names, once=leaf_names.wraps_once) for key in saved if ".original_module." not in key}
    names.body = BodyNames.of(bare.values(), names.backbone, names.modules)
    for key, spelled in bare.items():
        tensor, shared = saved[key], leaf_names.split(spelled)
        name = spelled if shared and not shared[0] else names.body.here(spelled)
        if name is None:
            found.outside.append(spelled)
        elif split := leaf_names.split(name):
            module, leaf = _unwrapped(*split)
            if expert := names.expert(module):
                _put(found.experts.setdefault(expert, {}), leaf, tensor, key, module)
                continue
            place = (names.module(module) if module else "", leaf)
            _put(found.leaves, place, tensor, key, place[0] or leaf)
        elif match := _ROWS.fullmatch(name):
            module = names.module(match["module"])
            _put(found.rows, module, tensor, key, module)
        else:
            own_name = _own_name(name, tensor, names)
            if not torch.equal(found.own.setdefault(own_name, tensor), tensor):
                msg = f"The adapter holds two values of {own_name}. Save it again."
                raise CheckpointError(msg)
    return found


def _unwrapped(module: str, leaf: str) -> tuple[str, str]:
    """Remove PEFT's wrappers from the name of a module; a leaf of the n-th inner wrapper of a module gets ``/n``."""
    depth = 0
    while module.endswith(_INNER):
        module, depth = module.removesuffix(_INNER), depth + 1
    return module.replace(f"{_INNER}.", "."), f"{leaf}/{depth}" if depth else leaf


def _put(tensors: dict[Any, Tensor], place: Any, tensor: Tensor, key: str, name: str) -> None:
    if place in tensors:
        msg = f"The adapter holds two tensors for {name}, as {key} and another: of several adapters? Save one of them alone."
        raise CheckpointError(msg)
    tensors[place] = tensor


def _own_name(name: str, tensor: Tensor, names: Names) -> str:
    own_name = names.tensor(name)
    if own_name is None:
        msg = (
            f"{name} {list(tensor.shape)} is not part of the method, and is not there in this {type(names.backbone).__name__}. "
            "Load its own backbone."
        )
        raise CheckpointError(msg)
    return own_name


def _bare(key: str, names: Names, *, once: bool) -> str:
    """Remove the prefixes of PEFT and of wrappers from a key; prompts are wrapped once, other methods twice."""
    name = plain(key)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    name = name.removeprefix("base_model." if once else "base_model.model.")
    while name.startswith("module.") and "module" not in names.modules:
        name = name.removeprefix("module.")
    return name
