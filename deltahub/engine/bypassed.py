"""Detection of bypassed layers: their parent reads their tensors without calling them, so a delta on them would never act.

    F.linear(x, self.proj.weight)        self.dt_proj.weight @ x        self.proj.forward(x)

The bytecode of the classes shows it: it loads `self.proj` only to read its tensors, and never to call it or to pass it on. Any
other use of a layer's name counts as a call, so a layer that may be called is never reported as bypassed.

`uncalled` reports layers with a delta that were not called although the backbone ran: the delta was not trained there, and
merging it would change the output.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, Final

from torch import nn

from deltahub.engine.insertion import acts_in
from deltahub.engine.layers import reading_fault
from deltahub.engine.ledger import has_run
from deltahub.engine.modules import module_at, own_modules
from deltahub.engine.site import site_of, was_called
from deltahub.engine.substitution import replacement_fault

_NUMBER: Final = re.compile(r"(?<![^.])\d+(?![^.])")


def uncalled(backbone: nn.Module, delta: str, addresses: Iterable[str], serial: int | None = None) -> list[str]:
    """Return the modules at which a delta has never acted although the backbone ran, such as bypassed layers.

    Layers whose names differ only in numbers count as one: an expert that received no token, or a dropped layer, is not
    reported if another layer of its kind was called. Neither is a layer that a graph of torch.compile may have called.

    Args:
        delta: the delta's name.
        addresses: the names of its modules.
        serial: of its entry, where a delta on a part of the backbone may have the same name; None for any of that name.
    """
    targets = {}
    for address in addresses:
        target = module_at(backbone, address)
        insertion = site_of(target).slots[delta]
        if any(acts_in(insertion, method) for method in ("before", "after", "substitute")):
            targets[address] = target
    if not (has_run(backbone, delta, serial) or any(site_of(target).called for target in targets.values())):
        return []
    called_kinds = {_kind(address) for address, target in targets.items() if was_called(target)}
    return [address for address in targets if _kind(address) not in called_kinds]


def _kind(address: str) -> str:
    return _NUMBER.sub("*", address)


_READS: Final = frozenset({"weight", "bias", "forward"})
# Attributes of a tensor that do not use its values.
_FACTS: Final = frozenset({"dtype", "device", "shape", "size", "requires_grad", "numel", "dim", "ndim", "is_meta"})
_LOADS: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_BETWEEN: Final = frozenset({"CACHE", "EXTENDED_ARG", "PUSH_NULL", "PRECALL", "NOP"})
_OUTSIDE: Final = frozenset({"__init__", "reset_parameters", "_init_weights", "_reset_parameters"})
_ALL_CHILDREN: Final = frozenset({"children", "named_children", "_modules", "__dict__"})


def is_bypassed(backbone: nn.Module, address: str) -> bool:
    """Whether the parent of a module reads its tensors, and nothing in the backbone calls it."""
    name, _, child = address.rpartition(".")
    parent = module_at(backbone, name)
    kind: Any = type(parent)  # to mypy, a class of modules cannot be hashed
    if not child or "forward" in vars(parent) or _mentions(kind, child) != {"read"}:
        return False
    kinds: set[Any] = {type(module) for _, module in own_modules(backbone)}
    return not any("lent" in _mentions(kind, child) for kind in kinds)


def parameter_fault(module: nn.Module, key: str) -> str:
    """Return why no update can act on a parameter that a module reads itself, as a clause; empty if it can."""
    if fault := reading_fault(module, key):
        return fault
    kind: Any = type(module)
    if not any(key in code.co_names or key in code.co_consts for code in _methods(kind)):
        return f"{kind.__name__} does not read it itself, so an update would never act"
    return replacement_fault(module)


@lru_cache(maxsize=4096)
def _mentions(kind: type[nn.Module], child: str) -> frozenset[str]:
    """Return how a class uses the child of this name: "read", "used", or "lent" for a child of another module."""
    mentions: set[str] = set()
    if any(value == child for base in kind.__mro__ for value in vars(base).values() if isinstance(value, str)):
        mentions.add("used")  # the name may be used for a lookup
    for code in _methods(kind):
        names = {*code.co_names, *(constant for constant in code.co_consts if isinstance(constant, str))}
        if not names.isdisjoint(_ALL_CHILDREN):
            mentions.add("used")
        if child in names or "getattr" in names:
            steps = [step for step in dis.get_instructions(code) if step.opname not in _BETWEEN]
            mentions |= {_mention(steps, place, child) for place in range(len(steps))}
    return frozenset(mentions - {""})


def _mention(steps: list[dis.Instruction], place: int, child: str) -> str:
    step = steps[place]
    earlier, owner = (steps[place - back] if place >= back else step for back in (2, 1))
    after, beyond = (steps[min(place + ahead, len(steps) - 1)] for ahead in (1, 2))
    if earlier.argval == "getattr" and _is_self(owner) and step.opname != "LOAD_CONST":
        return "used"  # the name is computed at run time
    if step.argval != child or step.opname not in {*_LOADS, "LOAD_CONST"}:
        return ""
    return "used" if step.opname == "LOAD_CONST" else _load(earlier, owner, after, beyond)


def _load(earlier: dis.Instruction, owner: dis.Instruction, after: dis.Instruction, beyond: dis.Instruction) -> str:
    if earlier.argval == "hasattr" or (after.opname in _LOADS and after.argval not in {*_READS, "__call__"}):
        return ""
    is_read = after.opname in _LOADS and after.argval in _READS
    if is_read and beyond.opname in _LOADS and beyond.argval in _FACTS:
        return ""
    if _is_self(owner):
        return "read" if is_read else "used"
    return "" if is_read else "lent"


def _is_self(step: dis.Instruction) -> bool:
    last = step.argval[-1] if isinstance(step.argval, tuple) and step.argval else step.argval
    return last == "self" and "LOAD" in step.opname


def _methods(kind: type[nn.Module]) -> Iterator[CodeType]:
    for base in kind.__mro__:
        if base not in {nn.Module, object}:
            for name, member in vars(base).items():
                if name not in _OUTSIDE:
                    yield from _codes(member, set())


def _codes(member: Any, visited_ids: set[int]) -> Iterator[CodeType]:
    """Yield the code of a method or property, or of the function it wraps, and of the nested functions."""
    if id(member) in visited_ids:
        return
    visited_ids.add(id(member))
    inner = [function for within in ("__wrapped__", "fget", "func") if (function := getattr(member, within, None))]
    for function in inner:
        yield from _codes(function, visited_ids)
    if isinstance(member, FunctionType) and not inner:  # a wrapper is generic and names no children
        yield from _with_inner(member.__code__)
        for cell in member.__closure__ or ():
            if isinstance(function := _content(cell), FunctionType):
                yield from _codes(function, visited_ids)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return None


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)
