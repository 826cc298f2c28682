"""Detection of bypassed layers: their parent reads their tensors without calling them, so a delta on them would never act.

    F.linear(x, self.proj.weight)        self.dt_proj.weight @ x        self.proj.forward(x)

The code of the classes shows it (`layer_uses`). A layer that may be called is never reported as bypassed.
"""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from deltahub.engine.layer_uses import MULTIPLIED, READ, USED, foreign_uses, names, own_uses
from deltahub.engine.layers import reading_fault
from deltahub.engine.modules import module_at, own_modules
from deltahub.engine.site import CHILD, site_of
from deltahub.engine.substitution import is_installed, replacement_fault

_LISTS: Final = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def is_bypassed(backbone: nn.Module, address: str) -> bool:
    """Whether code of the backbone reads the tensors of a module, and none calls it."""
    owner, child = _owner(backbone, address)
    if not child or ("forward" in vars(owner) and not is_installed(owner)):
        return False
    own = own_uses(_kind_of(owner), child)
    if USED in own:
        return False
    foreign = [foreign_uses(kind, child) for kind in _kinds(backbone)]
    return READ in own.union(*foreign) and not any(USED in uses for uses in foreign)


def reader_of(backbone: nn.Module, address: str) -> str:
    """Return the address of the module that reads the weight of a bypassed layer in its own forward; empty if another one does, too."""
    parent, _, child = address.rpartition(".")
    owner = module_at(backbone, parent)
    is_own = READ in own_uses(_kind_of(owner), child) and not replacement_fault(owner)
    is_foreign = any(READ in foreign_uses(kind, child) for kind in _kinds(backbone))
    return parent if is_own and not is_foreign else ""


def is_multiplied(backbone: nn.Module, address: str) -> bool:
    """Whether the class with a module multiplies by its weight without calling it, as where an embedding is the head, too."""
    owner, child = _owner(backbone, address)
    return bool(child) and MULTIPLIED in own_uses(_kind_of(owner), child)


def parameter_fault(module: nn.Module, key: str) -> str:
    """Return why no update can act on a parameter that a module reads itself, as a clause; empty if it can."""
    slots = site_of(module).slots if CHILD in module._modules else {}
    if anew := [name for name, insertion in slots.items() if insertion.recomputes]:
        return f"{anew[0]!r} computes its output anew from its parameters; address what that acts on instead"
    if fault := reading_fault(module, key):
        return fault
    kind = _kind_of(module)
    if not names(kind, key):
        return f"{kind.__name__} does not read it itself, so an update would never act"
    return replacement_fault(module)


def _owner(backbone: nn.Module, address: str) -> tuple[nn.Module, str]:
    """Return the module whose code uses a module, and the name of that, or of the list that contains it, there."""
    name, _, child = address.rpartition(".")
    while name and type(module_at(backbone, name)) in _LISTS:
        name, _, child = name.rpartition(".")
    owner = module_at(backbone, name)
    return owner, "" if type(owner) in _LISTS else child


def _kind_of(module: nn.Module) -> Any:  # to mypy, a class of modules cannot be hashed
    return type(module)


def _kinds(backbone: nn.Module) -> set[Any]:
    return {type(module) for _, module in own_modules(backbone)}
