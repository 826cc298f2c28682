"""What a backbone's deltas must not be asked for at the moment."""

from __future__ import annotations

from torch import nn

from deltahub.engine.ledger import ATTRIBUTE, Ledger
from deltahub.errors import ConfigError, MergeError, RouteError


def check_name(backbone: nn.Module, name: str) -> None:
    """Refuse a name that another delta on this backbone cannot have.

    Raises:
        ConfigError: it is taken, or no identifier.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and name in ledger.entries:
        msg = f"A delta called {name!r} is on this backbone already; choose another name."
        raise ConfigError(msg)
    if not name.isidentifier():
        msg = f"{name!r} cannot be the name of a delta: use letters, digits and '_', not starting with a digit."
        raise ConfigError(msg)


def refuse_merged(backbone: nn.Module) -> None:
    """Refuse to change the deltas of a backbone while some are in its weights.

    Raises:
        MergeError: some are.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and ledger.merged:
        names = ", ".join(map(repr, ledger.merged))
        msg = f"{names} is merged into the backbone's weights, which no delta was made for. Call unmerge() first."
        raise MergeError(msg)


def refuse_routed(backbone: nn.Module) -> None:
    """Refuse to change the deltas of a backbone while rows of a batch are on their way through some.

    Raises:
        RouteError: a route is open.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and ledger.route is not None:
        msg = (
            "A route is open on this backbone, and its deltas stay as they are meanwhile. Leave its `with` block first."
        )
        raise RouteError(msg)
