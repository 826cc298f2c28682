"""Common names for the parts of a mixture of experts, which the structure of its block does not name.

    mlp.experts.gate_up_proj     (experts, 2 n, d)     block.0.ff.experts.gate and .w1, or .gate_w1 where the order is not certain
    mlp.experts.down_proj        (experts, d, n)       block.0.ff.experts.w2
    mlp.gate, mlp.router         (experts, d)          block.0.ff.router
    mlp.shared_expert.up_proj    a linear layer        block.0.ff.shared_expert.w1

They count only for an address that means nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import nn

from deltahub.engine.layers import update_fault
from deltahub.engine.structure.layouts import Part, adjacent_parts
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap

_STACKS: Final = {"gate_up_proj": "gate,w1", "gate_proj": "gate", "up_proj": "w1", "down_proj": "w2"}
_LAYERS: Final = {"gate_proj": "gate", "up_proj": "w1", "down_proj": "w2"}
_ROUTERS: Final = ("gate", "router")
_SHARED: Final = ("shared_expert", "shared_experts", "shared_mlp")
_TURNED: Final = frozenset({"Llama4TextExperts"})  # classes that do not say so themselves
_IN_HALVES: Final = frozenset({"Llama4TextExperts"})
_IN_TURN: Final = frozenset({"GptOssExperts"})


@dataclass(frozen=True)
class NamedPart:
    """A parameter, a part of one, or a layer with a common name.

    Attributes:
        common: the name, in "@" notation.
        module: real name of the module.
        parameter: the module's name for the parameter; empty for a layer as a whole.
        part: the part of the parameter; None for the whole parameter.
    """

    common: str
    module: str
    parameter: str = ""
    part: Part | None = None


def is_turned_stack(module: nn.Module, key: str) -> bool:
    """Return whether a module keeps a stack of matrices as ``(experts, n_in, n_out)``."""
    parameter = module._parameters.get(key)
    if parameter is None or parameter.dim() != 3:
        return False
    return getattr(module, "is_transposed", False) is True or not _TURNED.isdisjoint(_names(module))


def stacked_parameters(module: nn.Module) -> list[str]:
    """Return the names of the matrices of a module that holds a stack of experts; empty for any other module."""
    stacks = [key for key in _STACKS if (p := module._parameters.get(key)) is not None and p.dim() == 3]
    counts = {len(module._parameters[key]) for key in stacks}  # type: ignore[arg-type]
    return [key for key in module._parameters if key in stacks] if "down_proj" in stacks and len(counts) == 1 else []


def is_router(name: str, module: nn.Module) -> bool:
    """Return whether a module is a router by its name, with a weight that it reads itself instead of a linear layer's forward."""
    weight = module._parameters.get("weight")
    if name.rpartition(".")[2] not in _ROUTERS or weight is None or weight.dim() != 2:
        return False
    return not isinstance(getattr(module, "in_features", None), int) or bool(update_fault(module))


def named_experts(structure: StructureMap) -> Iterator[NamedPart]:
    """Yield the parts of all mixtures of experts of a backbone that have common names."""
    for name, module in structure.modules.items():
        stacks = stacked_parameters(module)
        if not stacks or "." not in name:
            continue
        holder = name.rpartition(".")[0]
        base = structure.common_name(holder)
        for key in stacks:
            parts = _gate_parts(module, key)
            label = _STACKS[key] if parts or "," not in _STACKS[key] else "gate_w1"
            yield NamedPart(f"{base}.experts{MARK}.{label}{MARK}", name, key)
            for part in parts:
                yield NamedPart(f"{base}.experts{MARK}.{part.label}{MARK}", name, key, part)
        yield from _beside(structure, holder, base, len(module._parameters[stacks[0]]))  # type: ignore[arg-type]


def _beside(structure: StructureMap, holder: str, base: str, experts: int) -> Iterator[NamedPart]:
    """Yield the router and the shared experts beside a stack of experts."""
    for key, child in structure.modules[holder]._modules.items():
        weight = None if child is None else child._parameters.get("weight")
        if (
            key in _ROUTERS
            and child is not None
            and weight is not None
            and weight.dim() == 2
            and len(weight) == experts
        ):
            is_layer = isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward
            yield NamedPart(f"{base}.router{MARK}", f"{holder}.{key}", "" if is_layer else "weight")
        if key in _SHARED and child is not None:
            for layer, label in _LAYERS.items():
                if isinstance(child._modules.get(layer), nn.Linear):
                    yield NamedPart(f"{base}.shared_expert{MARK}.{label}{MARK}", f"{holder}.{key}.{layer}")


def _gate_parts(module: nn.Module, key: str) -> tuple[Part, ...]:
    """Return the parts of the joined gate and first matrices; empty if their order is not certain."""
    weight = module._parameters[key]
    assert weight is not None
    width = weight.shape[2 if is_turned_stack(module, key) else 1]
    if "," not in _STACKS[key] or width % 2:
        return ()
    names = _names(module)
    if names & _IN_TURN:
        return adjacent_parts(_STACKS[key], groups=width // 2)
    gate = getattr(type(module), "_apply_gate", None)
    in_halves = getattr(gate, "__name__", "") == "_default_apply_gate"  # transformers' own, which takes halves
    return adjacent_parts(_STACKS[key]) if in_halves or names & _IN_HALVES else ()


def _names(module: nn.Module) -> set[str]:
    return {base.__name__ for base in type(module).__mro__}
