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

_CALLS: Final = {  # the functions of the module that each method calls; those that it has
    "sequential": ("pre_forward", "post_forward"),
    "before": ("pre_forward",),
    "after": ("post_forward",),
    "parallel": ("forward",),
}


class InsertedModule(Insertion):
    """An insertion that calls a user's module.

    Raises:
        ConfigError: the method is unknown, or the module would never act.
    """

    keeps_length = False  # not known

    def __init__(self, module: Any, method: str) -> None:
        super().__init__()
        if method not in _CALLS:
            msg = f"method must be one of {', '.join(_CALLS)}, got {method!r}."
            raise ConfigError(msg)
        self.calls = [name for name in _CALLS[method] if hasattr(module, name)]
        if not self.calls or not isinstance(module, nn.Module):
            msg = f"delta_module must be a module of PyTorch with {' or '.join(_CALLS[method])} for {method!r}, got a {type(module).__name__}."
            raise ConfigError(msg)
        self.module: Any = module

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Call `pre_forward`, which returns the positional and the keyword arguments."""
        if "pre_forward" in self.calls:
            args, kwargs = self.module.pre_forward(*args, **kwargs)
        return tuple(args), kwargs

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Call `post_forward`, or return the sum of both outputs for ``"parallel"``."""
        if "forward" in self.calls:
            return output + self.module(*args, **kwargs)
        return self.module.post_forward(output) if "post_forward" in self.calls else output


def put(backbone: nn.Module, entry: Entry, target: nn.Module, insertion: InsertedModule, *, strict: bool) -> None:
    """Add a user's module to a delta: see `DeltaBase.insert_module`.

    Raises:
        ConfigError: the delta acts on the target already, or is detached.
        AddressError: the target is not part of the backbone, or cannot hold a delta. Nothing was changed.
        MergeError: deltas are merged.
        RouteError: a route is open.
    """
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
    note_compiled(backbone, [target])
