"""Checks of the modules that a config addresses, for methods that act on layers of one kind."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from deltahub.checkpoint.address import Address
from deltahub.engine.layers import update_fault
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.errors import NoMatchError, TargetError
from deltahub.text.suggestions import closest


def require_linear(targets: Iterable[Target], held: str) -> None:
    """Check that each target is a linear layer to whose output an update can be added.

    Args:
        held: the name of the update for messages: ``"a VeRA"``.

    Raises:
        TargetError: one is not.
    """
    for target in targets:
        linear_shape(target.name, target.module)
        fault = "it is an Embedding" if isinstance(target.module, nn.Embedding) else update_fault(target.module)
        if fault:
            msg = f"{target.name} ({type(target.module).__name__}) cannot hold {held}: {fault}. Leave it out."
            raise TargetError(msg)


def refuse_unmatched(patterns: Iterable[str], option: str, names: Collection[str]) -> None:
    """Raise if an address in an option matches none of the delta's modules.

    Args:
        names: the modules' real names.

    Raises:
        NoMatchError: an address matches no module of the delta.
    """
    for pattern in patterns:
        if not any(pattern == name or Address(pattern).matches(name) for name in names):
            raise NoMatchError(pattern, closest(pattern, names), f"It is in {option}.")
