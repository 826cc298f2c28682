"""Checks that the current state of a backbone allows an operation on its deltas."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from deltahub.engine.ledger import ATTRIBUTE, Ledger, names_on
from deltahub.engine.overrides import overrides
from deltahub.engine.site import Site
from deltahub.errors import ConfigError, MergeError, RouteError


def check_name(backbone: nn.Module, name: str) -> None:
    """Raise unless a new delta on this backbone can have this name.

    Raises:
        ConfigError: the name is taken, or is not an identifier.
    """
    if name in names_on(backbone):
        msg = f"A delta called {name!r} is on this backbone already; choose another name."
        raise ConfigError(msg)
    if not name.isidentifier():
        msg = f"{name!r} cannot be the name of a delta: use letters, digits and '_', not starting with a digit."
        raise ConfigError(msg)


def refuse_merged(backbone: nn.Module) -> None:
    """Raise if deltas are merged into a backbone's weights.

    Raises:
        MergeError: some are.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and ledger.merged:
        raise _merged(ledger.merged)


def refuse_merged_tensors(backbone: nn.Module, names: Collection[str]) -> None:
    """Raise if deltas are merged into backbone tensors that would have to train.

    Raises:
        MergeError: one is affected.
    """
    if merged := sorted(name for name, record in overrides(backbone) if record.merged and name in names):
        msg = f"A delta is merged into {merged[0]}, so it cannot be trained. Call unmerge() first."
        raise MergeError(msg)


def refuse_busy(sites: Iterable[Site]) -> None:
    """Raise if deltas of any handle are merged or routed at these sites.

    Raises:
        MergeError: some are merged.
        RouteError: a route is open.
    """
    for site in sites:
        if site.merged:
            raise _merged(site.merged)
        if site.detour is not None:
            raise _routed()


def _merged(names: Iterable[str]) -> MergeError:
    found = ", ".join(map(repr, names))
    return MergeError(
        f"{found} is merged into the backbone's weights, which no delta was made for. Call unmerge() first."
    )


def _routed() -> RouteError:
    return RouteError(
        "A route is open on this backbone, and its deltas stay as they are meanwhile. Leave its `with` block first."
    )


def refuse_routed(backbone: nn.Module) -> None:
    """Raise if a route is open on a backbone, which sends rows of a batch through its deltas.

    Raises:
        RouteError: one is.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and ledger.route is not None:
        raise _routed()
