"""LoRA on parameters that a module reads itself, as PEFT writes it: `target_parameters`.

    A    (experts, r, n_in)     as    (experts r, n_in), experts outermost
    B    (experts, n_out, r)    as    (n_out, r experts), experts innermost

PEFT wraps a module once for each of its parameters, the first innermost, and names a tensor by its wrapper: `experts.base_layer.lora_A`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from deltahub.engine.structure.experts import is_turned_stack, named_experts
from deltahub.engine.structure.names import StructureMap
from deltahub.errors import ConfigError
from deltahub.formats.backbone import ASK, Backbone
from deltahub.formats.peft.module_matching import meant

Shares = Mapping[str, dict[str, Tensor]]
_WRAPPED: Final = "base_layer."


@dataclass(frozen=True)
class Stack:
    """The update of a parameter.

    Attributes:
        down: A, ``(experts, r, n_in)``, or ``(r, n_in)`` of a matrix.
        up: B, ``(experts, n_out, r)`` or ``(n_out, r)``.
        parts: how many parts of the parameter it joins, each with a rank of its own.
    """

    down: Tensor
    up: Tensor
    parts: int

    @property
    def rank(self) -> int:
        """The rank of each matrix."""
        return self.down.shape[-2]


def by_parameter(shares: Shares, backbone: Backbone) -> dict[str, dict[str, Tensor]]:
    """Return a delta's tensors by module, those on a parameter by the name of the parameter.

    Raises:
        ConfigError: a LoRA acts on the weight of a layer that is never called, where PEFT's would not act.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for module, leaves in shares.items():
        for leaf, tensor in leaves.items():
            key, dot, rest = leaf.partition(".")
            name = f"{module}.{key}".lstrip(".")
            on_parameter = dot and name in backbone.shapes
            if dot and f"{name}.weight" in backbone.shapes and rest.startswith("lora_"):
                msg = f"{name} is never called: its parent reads its weight, so that a LoRA of PEFT would not act there. Keep the delta as it is, or merge it."
                raise ConfigError(msg)
            found.setdefault(name if on_parameter else module, {})[rest if on_parameter else leaf] = tensor
    return found


def split_parameters(shares: Shares, backbone: Backbone) -> tuple[Shares, Shares]:
    """Return the tensors on layers by module, and those on parameters by parameter."""
    parameters = {name: leaves for name, leaves in shares.items() if name in backbone.shapes}
    return {name: leaves for name, leaves in shares.items() if name not in parameters}, parameters


def modules_of(shares: Shares, backbone: Backbone) -> set[str]:
    """Return the modules with tensors."""
    return {name.rpartition(".")[0] if name in backbone.shapes else name for name in shares}


def stacked(name: str, leaves: Mapping[str, Tensor], backbone: Backbone) -> Stack:
    """Join the updates of the parts of a parameter, and repeat for each expert what experts share.

    Raises:
        ConfigError: the backbone is needed.
    """
    shape, module = backbone.shapes[name], _holder(name, backbone)
    key = name.rpartition(".")[2]
    labels = dict.fromkeys(leaf.rpartition(".")[0] for leaf in leaves)
    pairs = [[leaves[f"{label}.{leaf}".lstrip(".")] for leaf in ("lora_A", "lora_B")] for label in labels]
    if "" not in labels:
        parts = _parts(name, backbone)
        n_out = shape[-1 if is_turned_stack(module, key) else -2]
        for label, pair in zip(labels, pairs, strict=True):
            placed = pair[1].new_zeros(*pair[1].shape[:-2], n_out, pair[1].shape[-1])
            pair[1] = placed.index_copy(-2, parts[label].rows(n_out), pair[1])
    if len(shape) == 3:
        pairs = [[side.expand(shape[0], *side.shape[-2:]) for side in pair] for pair in pairs]
    down, up = torch.cat([pair[0] for pair in pairs], -2), torch.cat([pair[1] for pair in pairs], -1)
    if is_turned_stack(module, key) and getattr(module, "is_transposed", False) is not True:
        down, up = up.mT, down.mT  # PEFT does not know that this class keeps its matrices turned
    return Stack(down, up, len(pairs))


def _holder(name: str, backbone: Backbone) -> nn.Module:
    module = backbone.module(name.rpartition(".")[0])
    if module is None:
        msg = f"Only the backbone tells how {name} is laid out. {ASK}"
        raise ConfigError(msg)
    return module


def _parts(name: str, backbone: Backbone) -> dict[str, Any]:
    if backbone.model is None:
        msg = f"The delta acts on a part of {name} alone, and only the backbone tells which rows these are. {ASK}"
        raise ConfigError(msg)
    named = named_experts(StructureMap.of(backbone.model))
    return {n.part.label: n.part for n in named if n.part is not None and f"{n.module}.{n.parameter}" == name}


def parameter_tensors(stacks: Mapping[str, Stack], extra: Mapping[str, int], backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors in PEFT's form and under its names.

    Args:
        extra: by how much to raise the rank of each, with zeros.
    """
    tensors: dict[str, Tensor] = {}
    for name, stack in stacks.items():
        module, _, key = name.rpartition(".")
        order = [k for k in _holder(name, backbone)._parameters if f"{module}.{k}" in stacks]
        wrapper = f"{module}.{_WRAPPED * order[::-1].index(key)}"
        down, up = pad(stack.down, (0, 0, 0, extra[name])), pad(stack.up, (0, extra[name]))
        if down.dim() == 3:
            down, up = down.flatten(0, 1), up.permute(1, 2, 0).flatten(1)
        tensors |= {f"{wrapper}lora_A.weight": down, f"{wrapper}lora_B.weight": up}
    return tensors


def parameter_names(parameters: Shares, backbone: Backbone) -> list[str]:
    """Return the shortest names that mean exactly these parameters in PEFT.

    Raises:
        ConfigError: no names do.
    """
    chosen = set(parameters)
    for length in (2, 3):
        ends = sorted({".".join(name.split(".")[-length:]) for name in chosen})
        if meant(ends, backbone.shapes) == chosen:
            return ends
    if meant(sorted(chosen), backbone.shapes) != chosen:
        msg = f"PEFT has no names that mean {min(chosen)} alone. Load the delta with deltahub."
        raise ConfigError(msg)
    return sorted(chosen)
