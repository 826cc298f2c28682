"""Which parameters trained before deltas froze them, to be given back when the last delta is removed.

It is kept at each module with those who froze it, so that deltas on a part of a model and on the whole can go in any order.
"""

from __future__ import annotations

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
        holders: serial numbers of the ledgers whose deltas froze it.
    """

    trained: frozenset[str]
    holders: set[int] = field(default_factory=set)


def remember(backbone: nn.Module, holder: int) -> None:
    """Keep which parameters train, where that is not kept already."""
    for _, module in own_modules(backbone):
        if module._parameters and ATTRIBUTE not in module.__dict__:
            keys = (
                key
                for key, parameter in module._parameters.items()
                if parameter is not None and parameter.requires_grad
            )
            module.__dict__[ATTRIBUTE] = Before(frozenset(keys))
        if module._parameters:
            module.__dict__[ATTRIBUTE].holders.add(holder)


def give_back(backbone: nn.Module, holder: int) -> None:
    """Let what trained before train again, where nobody else has frozen it."""
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
    """Remove what is kept; the parameters stay as they are."""
    for _, module in own_modules(backbone):
        module.__dict__.pop(ATTRIBUTE, None)
