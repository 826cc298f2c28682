"""Stand-ins for parameters that the forward of a module reads itself, such as stacks of experts.

    class Experts:  forward(self, x): ... F.linear(x, self.gate_up_proj[e]) ...

While a delta acts on parameters, the module's forward runs with a view of the module in place of `self`: it returns stand-ins for these
parameters, and everything else as the module does. Neither the module nor its parameters change, so several threads may call it.

The forward is replaced on the module by a function without state. The hook that runs before tells it which module is called, so that copies
and replicas of the module run with their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final

import torch
from torch import nn

from deltahub.engine.insertion import Args, Kwargs
from deltahub.errors import TargetError

CALLED: Final = "_deltahub_called"  # the keyword argument that carries the called module from the hook to the forward


class Called:
    """The module of a call; not the module itself, which libraries would move to the device of the other arguments."""

    def __init__(self, module: nn.Module, values: Mapping[str, Any]) -> None:
        self.module = module
        self.values = values


class ModuleView:
    """A module with stand-ins for some of its parameters."""

    def __init__(self, module: nn.Module, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "_values", values)

    def __getattr__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        member = getattr(type(self._module), name, None)
        if isinstance(member, FunctionType):
            return partial(member, self)
        if isinstance(member, property) and member.fget is not None:
            return member.fget(self)
        return getattr(self._module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._module, name, value)


def viewed(module: nn.Module | ModuleView, values: Mapping[str, Any]) -> ModuleView:
    """Return a module, or a view of one, with stand-ins for some of its parameters."""
    if isinstance(module, ModuleView):
        inner, earlier = object.__getattribute__(module, "_module"), object.__getattribute__(module, "_values")
        return ModuleView(inner, {**earlier, **values})
    return ModuleView(module, values)


class _InheritingView(ModuleView):
    """A view for a forward that calls `super()`, which looks at the class."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(object.__getattribute__(self, "_module"))


def substituted_forward(*args: Any, **kwargs: Any) -> Any:
    """Run the forward of the called module with its stand-ins.

    Raises:
        TargetError: the module's forward was called directly, not the module.
    """
    called = kwargs.pop(CALLED, None)
    if called is None:
        msg = "The forward of a module was called directly, where the deltas on its parameters do not act. Call the module itself."
        raise TargetError(msg)
    forward = type(called.module).forward
    if not called.values:
        return forward(called.module, *args, **kwargs)
    if _calls_super(forward):
        return _run_inheriting(called, args, kwargs)
    return forward(ModuleView(called.module, called.values), *args, **kwargs)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the graph cannot hold an object of two classes
def _run_inheriting(called: Called, args: Args, kwargs: Kwargs) -> Any:
    view: Any = _InheritingView(called.module, called.values)
    return type(called.module).forward(view, *args, **kwargs)


def _calls_super(forward: Any) -> bool:
    return "__class__" in getattr(forward, "__code__", _calls_super.__code__).co_freevars


def replacement_fault(module: nn.Module) -> str:
    """Return why the forward of a module cannot be replaced, as a clause; empty if it can."""
    forward = module.__dict__.get(_place(module))
    own = inspect.ismethod(forward) and forward.__self__ is module and forward.__func__ is type(module).forward
    if forward is None or own or forward is substituted_forward:
        return ""
    return f"the forward of this {type(module).__name__} was replaced, so that an update of a parameter would not act"


def install(module: nn.Module) -> None:
    """Make a module run its forward with stand-ins; idempotent."""
    if not is_installed(module):
        module.__dict__[_place(module)] = substituted_forward


def uninstall(module: nn.Module) -> None:
    """Undo `install`."""
    attributes = module.__dict__
    if attributes.get("forward") is substituted_forward:
        del attributes["forward"]
    elif attributes.get("_old_forward") is substituted_forward:
        attributes["_old_forward"] = MethodType(type(module).forward, module)


def is_installed(module: nn.Module) -> bool:
    """Return whether a module runs its forward with stand-ins."""
    return substituted_forward in (module.__dict__.get("forward"), module.__dict__.get("_old_forward"))


def _place(module: nn.Module) -> str:
    """Return the attribute to replace: `forward`, or the original one that a hook of accelerate calls."""
    return "_old_forward" if {"_hf_hook", "_old_forward"} <= module.__dict__.keys() else "forward"
