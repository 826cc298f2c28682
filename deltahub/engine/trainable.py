"""The record of which parameters trained before deltas froze them, restored when the last delta is removed.

It is stored at each module with the ledgers that froze it, so that deltas on a part of a model and on the whole can be
removed in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from torch import nn

from deltahub.engine.modules import own_modules

ATTRIBUTE: Final = "_deltahub_trainable"


@dataclass
class Before:
    """A module's parameters before they were frozen.

    Attributes:
        trained: keys of those that trained.
        holders: serial numbers of the ledgers whose deltas froze the module.
    """

    trained: frozenset[str]
    holders: set[int] = field(default_factory=set)


def remember(modules: Iterable[nn.Module], holder: int) -> None:
    """Record which parameters of modules train, unless that is recorded already."""
    for module in modules:
        if not module._parameters:
            continue
        before = module.__dict__.get(ATTRIBUTE)
        if before is None:
            keys = (key for key, p in module._parameters.items() if p is not None and p.requires_grad)
            before = module.__dict__[ATTRIBUTE] = Before(frozenset(keys))
        before.holders.add(holder)


def restore_trainable(backbone: nn.Module, holder: int) -> None:
    """Let the parameters train again that trained before, unless another ledger has frozen them."""
    for _, module in own_modules(backbone):
        before = module.__dict__.get(ATTRIBUTE)
        if before is None:
            continue
        before.holders.discard(holder)
        if not before.holders:
            del module.__dict__[ATTRIBUTE]
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    parameter.requires_grad_(key in before.trained)


def forget_trainable(backbone: nn.Module) -> None:
    """Remove the records; the parameters stay as they are."""
    for _, module in own_modules(backbone):
        module.__dict__.pop(ATTRIBUTE, None)
