"""Modules of users, put on a backbone by hand."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from deltahub.engine.guards import note_compiled, refuse_busy, refuse_merged, refuse_routed
from deltahub.engine.insertion import Args, Insertion, Kwargs
from deltahub.engine.ledger import Entry
from deltahub.engine.site import CHILD, Site, check_target, insert
from deltahub.errors import ConfigError, TargetError
from deltahub.handle.freezing import prefix_of


class InsertedModule(Insertion):
    """An insertion that calls a user's module."""

    keeps_length = False  # not known

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module


class Before(InsertedModule):
    """An insertion that changes the arguments by `pre_forward`."""

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Call `pre_forward`, which returns the positional and the keyword arguments."""
        changed_args, changed_kwargs = self.module.pre_forward(*args, **kwargs)
        return tuple(changed_args), changed_kwargs


class After(InsertedModule):
    """An insertion that changes the output by `post_forward`."""

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Call `post_forward`."""
        return self.module.post_forward(output)


class Around(Before, After):
    """An insertion that changes the arguments and the output."""


class Parallel(InsertedModule):
    """An insertion that adds the output of the module for the same arguments."""

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Call the module, and return the sum of both outputs."""
        return output + self.module(*args, **kwargs)


_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "sequential": ("pre_forward", "post_forward"),
    "before": ("pre_forward",),
    "after": ("post_forward",),
    "parallel": ("forward",),
}
_CLASSES: Final[dict[tuple[str, ...], type[InsertedModule]]] = {
    ("pre_forward", "post_forward"): Around,
    ("pre_forward",): Before,
    ("post_forward",): After,
    ("forward",): Parallel,
}


def _new(method: str, module: Any) -> InsertedModule:
    if method not in _NEEDS:
        msg = f"method must be one of {', '.join(_NEEDS)}, got {method!r}."
        raise ConfigError(msg)
    if not isinstance(module, nn.Module):
        msg = f"delta_module must be a module of PyTorch, got a {type(module).__name__}."
        raise ConfigError(msg)
    calls = tuple(name for name in _NEEDS[method] if hasattr(module, name))
    if not calls:
        msg = f"{type(module).__name__} has no {' and no '.join(_NEEDS[method])}, so inserted as {method!r} it would never act."
        raise ConfigError(f"{msg} Define one, or choose another method.")
    return _CLASSES[calls](module)


def put(backbone: nn.Module, entry: Entry, target: nn.Module, method: str, module: Any, *, strict: bool) -> None:
    """Add a user's module to a delta: see `DeltaBase.insert_module`.

    Raises:
        ConfigError: the method is unknown, the module would never act, the delta acts on the target already, or is detached.
        AddressError: the target is not part of the backbone, or cannot hold a delta. Nothing was changed.
        MergeError: deltas are merged.
        RouteError: a route is open.
    """
    insertion = _new(method, module)
    address = prefix_of(backbone, target).rstrip(".")
    check_target(address, target)
    refuse_merged(backbone)
    refuse_routed(backbone)
    if not entry.attached:
        msg = f"{entry.name!r} is detached. attach() it before modules are added."
        raise ConfigError(msg)
    if address in entry.insertions:
        msg = f"{entry.name!r} acts on {address} already. Put both into one module, or make another delta for the second one."
        raise ConfigError(msg)
    site = target._modules.get(CHILD)
    if isinstance(site, Site):
        refuse_busy([site])
        if strict:
            msg = f"{address} holds a delta already. Pass strict=False to let both act."
            raise TargetError(msg)
    insert(target, entry.name, insertion, address)
    entry.insertions[address] = insertion
    note_compiled([target])
