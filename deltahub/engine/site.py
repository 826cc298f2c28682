"""Where deltas meet a backbone: one `Site` per target module, called by two stateless hooks.

The hooks are top-level functions and all state is a child of the target, so a backbone with deltas copies, pickles,
replicates and compiles like any other module, and its own names stay put. Deltas come off in any order.

    before:  last added first      target.forward      after:  first added first
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from deltahub.errors import TargetError

CHILD: Final = "deltas"  # the reserved child: `encoder.layer.0.query.deltas.lora.lora_A`

Args = tuple[Any, ...]
Kwargs = dict[str, Any]

_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Insertion(nn.Module):
    """What one delta does at one target. Override `before`, `after` or both."""

    def before(self, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Change what the target is called with."""
        return args, kwargs

    def after(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change what the target returns.

        Args:
            args: what the target was called with, after every `before`.
            kwargs: the same by name.
            output: what it returned, after every earlier `after`.
        """
        return output


class Site(nn.Module):
    """The insertions at one target, by delta name, in the order they were added.

    An insertion that is off keeps its slot but leaves the module tree: `parameters()`, `state_dict()` and a forward pass
    do not see it, so their cost does not grow with the number of deltas that are loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[str, Insertion] = {}  # a plain dict: what it holds is not in the module tree
        self.befores: tuple[Insertion, ...] = ()
        self.afters: tuple[Insertion, ...] = ()

    def put(self, name: str, insertion: Insertion) -> None:
        """Add an insertion and turn it on."""
        self.slots[name] = insertion
        self._set_active({*self._modules, name})

    def turn(self, name: str, on: bool) -> None:
        """Turn the insertion called `name` on or off."""
        self._set_active({*self._modules, name} if on else self._modules.keys() - {name})

    def _set_active(self, names: set[str]) -> None:
        active = {name: insertion for name, insertion in self.slots.items() if name in names}
        self._modules.clear()
        self._modules.update(active)
        changing_input = [i for i in active.values() if type(i).before is not Insertion.before]
        self.befores = tuple(reversed(changing_input))  # the last one added is the outermost
        self.afters = tuple(i for i in active.values() if type(i).after is not Insertion.after)


def check_target(name: str, module: nn.Module) -> None:
    """Refuse a module that is never called itself, or has no room for a delta.

    Raises:
        TargetError: it is a container, or read by its parent, or `deltas` is its own; the message says what to do.
    """
    if CHILD not in module._modules and hasattr(module, CHILD):
        raise _no_room(name, getattr(module, CHILD))
    if isinstance(module, NonDynamicallyQuantizableLinear):
        msg = f"{name} is never called: nn.MultiheadAttention reads its weights itself. Address the attention instead."
        raise TargetError(msg)
    if isinstance(module, _CONTAINERS):
        child = next((f"{name}.{key}" for key, _ in module.named_children()), "a module inside it")
        msg = f"{name} is a {type(module).__name__}, a container that cannot hold a delta. Address {child} instead."
        raise TargetError(msg)


def refuse_own_deltas(modules: Mapping[str, nn.Module]) -> None:
    """Refuse a backbone with a module or tensor called `deltas`, which would be taken for a delta's.

    Raises:
        TargetError: it has one.
    """
    for name, module in modules.items():
        for held in (module._modules, module._parameters, module._buffers):
            if CHILD in held and not isinstance(held[CHILD], Site):
                raise _no_room(name, held[CHILD])


def _no_room(name: str, own: Any) -> TargetError:
    msg = f"{name or 'The backbone'} has an attribute {CHILD!r} of its own ({type(own).__name__}), a name that is reserved."
    return TargetError(f"{msg} Rename it.")


def insert(target: nn.Module, name: str, insertion: Insertion) -> None:
    """Run `insertion` whenever `target` is called."""
    site = target._modules.get(CHILD)
    if not isinstance(site, Site):
        site = Site()
        target.add_module(CHILD, site)
        target.register_forward_hook(_after, with_kwargs=True)
    needs_before = type(insertion).before is not Insertion.before
    if needs_before and not any(type(i).before is not Insertion.before for i in site.slots.values()):
        target.register_forward_pre_hook(_before, with_kwargs=True)  # only where needed: a hook costs microseconds
    site.train(target.training)
    site.put(name, insertion.train(target.training))


def module_at(backbone: nn.Module, address: str) -> nn.Module:
    """A module by its real name, which is known to exist; `get_submodule` checks each step and costs ten times as much."""
    module = backbone
    for part in address.split("."):
        module = module._modules[part]  # type: ignore[assignment]
    return module


def site_of(target: nn.Module) -> Site:
    """The site of a module that holds deltas."""
    site = target._modules[CHILD]
    assert isinstance(site, Site)
    return site


def holds(backbone: nn.Module, address: str, name: str, insertion: Insertion) -> bool:
    """Whether an insertion is still in its place: its target may have been replaced by another module."""
    module: nn.Module | None = backbone
    for part in address.split("."):
        module = None if module is None else module._modules.get(part)
    site = None if module is None else module._modules.get(CHILD)
    return isinstance(site, Site) and site.slots.get(name) is insertion


# `_modules[...]`, not `target.deltas`: nn.Module.__getattr__ is half the cost of a call here.
def _before(target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    for insertion in target._modules[CHILD].befores:  # type: ignore[union-attr]
        args, kwargs = insertion.before(args, kwargs)
    return args, kwargs


def _after(target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
    for insertion in target._modules[CHILD].afters:  # type: ignore[union-attr]
        output = insertion.after(args, kwargs, output)
    return output


def first_input(args: Args, kwargs: Kwargs) -> Any:
    """The first argument of a call, by position or by name: for a layer, its input tensor."""
    return args[0] if args else next(iter(kwargs.values()))


def map_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply `change` to the hidden state of an output: a tensor, or the first element of a tuple or ModelOutput."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        changed = (change(output[0]), *output[1:])
        return type(output)(*changed) if hasattr(output, "_fields") else changed
    # transformers' ModelOutput is an ordered dict
    if isinstance(output, dict) and output and isinstance(output[key := next(iter(output))], Tensor):
        output[key] = change(output[key])
        return output
    msg = f"The target returns a {type(output).__name__}; expected a tensor, a tuple or a ModelOutput that begins with one."
    raise TargetError(msg)


def is_delta_name(name: str) -> bool:
    """Whether a parameter or module of this name belongs to a delta rather than to the backbone."""
    return CHILD in name and f".{CHILD}." in f".{name}."
