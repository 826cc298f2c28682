"""The places where deltas meet a backbone: one `Site` per target module, called by two stateless hooks.

The hooks are top-level functions and all state is in a child of the target, so a backbone with deltas copies, pickles,
replicates and compiles like any other module, and its own names do not change. Deltas can be removed in any order.

    before:  last added first      target.forward      after:  first added first

Insertions on parameters of the target have its forward read stand-ins for these (`engine/substitution.py`).

torch.compile does not check hooks before it reuses a graph, but it checks the type of a module's `_parameters`. While a
module has a site, that type encodes which hooks there are, so that a graph made without them is not reused, neither for
this module nor for another like it. A module that has neither parameters nor children is marked at its parents (`engine/marks.py`).

A graph cannot note that a target is called each time it runs, so that is noted while it is traced. Later it may serve modules of another
block or model; these have the class and the name of those that it was traced with.

Inside the target's forward, an attention may ask its site to extend its keys and values (`engine/attention.py`).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from torch import nn
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from deltahub.engine.insertion import Args, Insertion, Kwargs, acts_in
from deltahub.engine.substitution import CALLED, Called, install, uninstall
from deltahub.engine.tracing import while_tracing
from deltahub.errors import TargetError

CHILD: Final = "deltas"  # the reserved child: `encoder.layer.0.query.deltas.lora.lora_A`
COMPILED: Final = "_orig_mod"  # the child of torch.compile's wrapper

_CONTAINERS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_TRACED: Final[set[tuple[type[Any], str]]] = set()  # class and name of the targets that graphs were made with
_ANY: Final = (nn.Module, "")  # a target that this torch does not tell


class SiteParameters(dict[str, Any]):
    """Parameters of a module with a site and neither hook."""


class BeforeParameters(SiteParameters):
    """Parameters of a module with a hook before its forward."""


class AfterParameters(SiteParameters):
    """Parameters of a module with a hook after its forward."""


class BothParameters(SiteParameters):
    """Parameters of a module with a hook before and a hook after its forward."""


_MARKS: Final[dict[tuple[bool, bool], type[dict[str, Any]]]] = {
    (False, False): SiteParameters,
    (True, False): BeforeParameters,
    (False, True): AfterParameters,
    (True, True): BothParameters,
}


class Detour(Protocol):
    """An alternative to running all insertions of a site on every row (`handle/routing.py`)."""

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Replace every `before`."""
        ...

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Replace every `after`."""
        ...

    def attend(self, target: nn.Module, call: Any) -> Any:
        """Replace every `attend`."""
        ...


class Site(nn.Module):
    """The insertions at one target, by delta name, in the order they were added.

    An inactive insertion keeps its slot but leaves the module tree: `parameters()`, `state_dict()` and a forward pass do not
    see it. No step here visits inactive insertions, so its cost does not grow with the number of loaded ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[str, Insertion] = {}  # a plain dict, to keep its values out of the module tree
        self.order: dict[str, int] = {}  # slot numbers, kept while an insertion is inactive
        self.befores: tuple[Insertion, ...] = ()
        self.afters: tuple[Insertion, ...] = ()
        self.attends: tuple[Insertion, ...] = ()
        self.substitutes: tuple[Insertion, ...] = ()
        self.substituting = False  # whether the target's forward is replaced, for an insertion that may be inactive
        self.detour: Detour | None = None
        self.place = ""  # the last part of the target's name, "*" for a number
        self.called = False  # whether the target has run, or was traced, since the last insertion
        self.called_before = False  # whether it has before that
        self.merged: list[str] = []  # those written into the target's weights, in the order that was done

    # nn.Module's own looks for parameters and modules, which no attribute of a site is, at ten times the cost.
    __setattr__ = object.__setattr__  # type: ignore[assignment]

    def put(self, name: str, insertion: Insertion) -> None:
        """Add an insertion and activate it."""
        self.called, self.called_before = False, self.called or self.called_before
        self.order[name] = 1 + next(reversed(self.order.values()), -1)
        self.slots[name] = insertion
        self._modules[name] = insertion  # the last slot, so every list below stays in order
        if acts_in(insertion, "before"):
            self.befores = (insertion, *self.befores)
        if acts_in(insertion, "after"):
            self.afters = (*self.afters, insertion)
        if acts_in(insertion, "attend"):
            self.attends = (*self.attends, insertion)
        if acts_in(insertion, "substitute"):
            self.substitutes = (*self.substitutes, insertion)
            self.substituting = True

    def turn(self, name: str, on: bool) -> None:
        """Activate or deactivate the insertion called `name`."""
        if on == (name in self._modules):
            return
        insertion = self.slots[name]
        if on:
            self._modules[name] = insertion
            self._sort(insertion)
            return
        del self._modules[name]
        self.befores = tuple(i for i in self.befores if i is not insertion)
        self.afters = tuple(i for i in self.afters if i is not insertion)
        self.attends = tuple(i for i in self.attends if i is not insertion)
        self.substitutes = tuple(i for i in self.substitutes if i is not insertion)

    def drop(self, name: str) -> None:
        """Remove an insertion."""
        self.turn(name, on=False)
        del self.slots[name], self.order[name]

    def _sort(self, added: Insertion) -> None:
        """Put the active insertions back in slot order, in those lists that `added` belongs to."""
        active = {name: self.slots[name] for name in sorted(self._modules, key=self.order.__getitem__)}
        self._modules.clear()
        self._modules.update(active)
        ordered = tuple(active.values())
        if acts_in(added, "before"):
            self.befores = tuple(i for i in reversed(ordered) if acts_in(i, "before"))  # the last added is outermost
        if acts_in(added, "after"):
            self.afters = tuple(i for i in ordered if acts_in(i, "after"))
        if acts_in(added, "attend"):
            self.attends = tuple(i for i in ordered if acts_in(i, "attend"))
        if acts_in(added, "substitute"):
            self.substitutes = tuple(i for i in ordered if acts_in(i, "substitute"))

    def called_with(self, target: nn.Module) -> Called:
        """Return the stand-ins for the target's parameters in a call."""
        values: dict[str, Any] = {}
        for insertion in self.substitutes if self.detour is None else ():
            values = {**values, **insertion.substitute(target, values)}
        return Called(target, values)


def check_target(name: str, module: nn.Module) -> None:
    """Raise if a module is never called itself, or has no room for a delta.

    Raises:
        TargetError: it is a container, its parent reads its weights, or it has its own `deltas`; the message suggests a remedy.
    """
    if CHILD not in module._modules and hasattr(module, CHILD):
        raise _no_room(name, getattr(module, CHILD))
    if isinstance(module, NonDynamicallyQuantizableLinear):
        msg = (
            f"{name} is never called: nn.MultiheadAttention reads its weights itself. Leave it out, or put an adapter on the "
            f"attention as a whole ({name.rpartition('.')[0]})."
        )
        raise TargetError(msg)
    if isinstance(module, _CONTAINERS):
        child = next((f"{name}.{key}" for key, _ in module.named_children()), "a module inside it")
        msg = f"{name} is a {type(module).__name__}, a container that cannot hold a delta. Address {child} instead."
        raise TargetError(msg)


def refuse_own_deltas(name: str, module: nn.Module) -> None:
    """Raise if a module of a backbone has its own module or tensor called `deltas`, which would be taken for a delta's.

    Args:
        name: the name of the module.

    Raises:
        TargetError: it has one.
    """
    for members in (module._modules, module._parameters, module._buffers):
        if CHILD in members and not isinstance(members[CHILD], Site):
            raise _no_room(name, members[CHILD])


def _no_room(name: str, attribute: Any) -> TargetError:
    msg = f"{name or 'The backbone'} has an attribute {CHILD!r} of its own ({type(attribute).__name__}), a name that is reserved."
    return TargetError(f"{msg} Rename it.")


def insert(target: nn.Module, name: str, insertion: Insertion, address: str = "") -> None:
    """Run `insertion` whenever `target` is called."""
    site = _site_at(target)
    last = address.rpartition(".")[2]
    site.place = "*" if last.isdecimal() else last
    substitutes = acts_in(insertion, "substitute")
    if substitutes:
        install(target)
    # Only the hooks that are needed: each costs microseconds.
    if (acts_in(insertion, "before") or substitutes) and _before not in target._forward_pre_hooks.values():
        target.register_forward_pre_hook(_before, with_kwargs=True)
    if acts_in(insertion, "after") and _after not in target._forward_hooks.values():
        target.register_forward_hook(_after, with_kwargs=True)
    site.put(name, insertion.train(target.training))
    _mark(target)


def _mark(target: nn.Module) -> None:
    """Encode in the type of a module's `_parameters` which of our hooks it has; a foreign type stays."""
    parameters = target._parameters
    if type(parameters) is dict or isinstance(parameters, SiteParameters):
        mark = _MARKS[hooks_of(target)] if CHILD in target._modules else dict
        object.__setattr__(target, "_parameters", mark(parameters))  # not by nn.Module's own: see Site


def hooks_of(target: nn.Module) -> tuple[bool, bool]:
    """Return whether our hooks run before and after a module's forward."""
    return _before in target._forward_pre_hooks.values(), _after in target._forward_hooks.values()


def _site_at(target: nn.Module) -> Site:
    site = target._modules.get(CHILD)
    if not isinstance(site, Site):
        site = target._modules[CHILD] = Site()  # not by add_module, which looks for an attribute of the name, at length
        site.training = target.training
    return site


def open_site(target: nn.Module) -> bool:
    """Make a module ask the `detour` of its site after each forward, until `close_site` undoes it.

    Returns:
        False if the module already asked its site after each forward.
    """
    if _after in target._forward_hooks.values():
        return False
    _site_at(target)
    target.register_forward_hook(_after, with_kwargs=True)
    _mark(target)
    return True


def close_site(target: nn.Module) -> None:
    """Undo `open_site`."""
    _unhook(target._forward_hooks, target._forward_hooks_with_kwargs, _after)
    if not site_of(target).slots:
        del target._modules[CHILD]
    _mark(target)


def eject(target: nn.Module, name: str) -> None:
    """Undo `insert`, and remove the hooks that no other insertion needs, and the site with its last insertion."""
    site = site_of(target)
    site.drop(name)
    if site.substituting and not any(acts_in(insertion, "substitute") for insertion in site.slots.values()):
        site.substituting = False
        uninstall(target)
    if not site.substituting and not any(acts_in(insertion, "before") for insertion in site.slots.values()):
        _unhook(target._forward_pre_hooks, target._forward_pre_hooks_with_kwargs, _before)
    if not any(acts_in(insertion, "after") for insertion in site.slots.values()):
        _unhook(target._forward_hooks, target._forward_hooks_with_kwargs, _after)
    if not site.slots:
        del target._modules[CHILD]
    _mark(target)


def _unhook(hooks: dict[int, Any], flags: dict[int, bool], hook: Any) -> None:
    for key in [key for key, registered in hooks.items() if registered is hook]:
        del hooks[key]
        flags.pop(key, None)


def was_called(target: nn.Module) -> bool:
    """Whether a module that holds deltas has ever run, or may have run in a graph that was made with another one."""
    site = site_of(target)
    return site.called or site.called_before or not _TRACED.isdisjoint({(type(target), site.place), _ANY})


def _note_traced(target: nn.Module | None) -> None:
    if target is None:
        _TRACED.add(_ANY)
        return
    site = site_of(target)
    site.called = True
    _TRACED.add((type(target), site.place))


def delta_key(address: str, key: str) -> str:
    """Return the name of a delta's tensor in a checkpoint; the backbone itself has the address ``""``."""
    return f"{address}.{CHILD}.{key}" if address else f"{CHILD}.{key}"


def site_of(target: nn.Module) -> Site:
    """Return the site of a module that holds deltas."""
    site = target._modules[CHILD]
    assert isinstance(site, Site)
    return site


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's wrapper, or else the module itself; names do not include the wrapper."""
    inner = module._modules.get(COMPILED)
    return inner if inner is not None and type(module).__name__ == "OptimizedModule" else module


def holds(backbone: nn.Module, address: str, name: str, insertion: Insertion) -> bool:
    """Return whether an insertion is still in its place: its target may have been replaced by another module."""
    module: nn.Module | None = backbone
    for part in address.split(".") if address else ():
        child = None if module is None else module._modules.get(part)
        module = None if child is None else uncompiled(child)
    site = None if module is None else module._modules.get(CHILD)
    return isinstance(site, Site) and site.slots.get(name) is insertion


# `_modules[...]`, not `target.deltas`: nn.Module.__getattr__ would be half the cost of a call.
def _before(target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    site: Any = target._modules[CHILD]
    if is_dynamo_compiling():
        while_tracing(_note_traced, target)
    else:
        site.__dict__["called"] = True  # not by nn.Module.__setattr__, which costs as much as the whole hook
    if site.detour is not None:
        args, kwargs = site.detour.before(target, args, kwargs)
    else:
        for insertion in site.befores:
            args, kwargs = insertion.before(target, args, kwargs)
    return (args, {**kwargs, CALLED: site.called_with(target)}) if site.substituting else (args, kwargs)


def _after(target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
    site: Any = target._modules[CHILD]
    if is_dynamo_compiling():
        while_tracing(_note_traced, target)
    else:
        site.__dict__["called"] = True
    if site.detour is not None:
        return site.detour.after(target, args, kwargs, output)
    for insertion in site.afters:
        output = insertion.after(target, args, kwargs, output)
    return output


def is_delta_name(name: str) -> bool:
    """Return whether a parameter or module of this name belongs to a delta rather than to the backbone."""
    return CHILD in name and f".{CHILD}." in f".{name}."


def delta_of(name: str) -> str:
    """Return the name of the delta that a parameter or module of this name belongs to; empty for the backbone's own."""
    return f".{name}.".partition(f".{CHILD}.")[2].partition(".")[0]
