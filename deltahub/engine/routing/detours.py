"""The work of a module with deltas while a route is open: each insertion, and each head, acts on its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input, overrides, stackable
from deltahub.engine.ledger import Entry
from deltahub.engine.routing.heads import Head
from deltahub.engine.routing.rows import Split, hidden_of
from deltahub.engine.site import Site
from deltahub.errors import RouteError


class Batch(Protocol):
    """The route's knowledge of the batch.

    Attributes:
        backbone: the backbone.
        rows: the delta of each row, or None.
        sizes: the numbers of rows a tensor may have: one for each row, or several side by side.
    """

    backbone: nn.Module
    rows: tuple[Entry | None, ...]
    sizes: tuple[int, ...]

    def check(self, address: str, hidden: Any, *, certain: bool = False) -> int:
        """Return the number of rows of a hidden state at a module."""
        ...


@dataclass(frozen=True, eq=False)
class _Plan:
    """The work at one module for one batch size; None or empty where there is none."""

    before: Split | None
    after: tuple[Split, ...]
    attend: tuple[tuple[Insertion, Tensor | None], ...]  # None: all rows


class DetourByRows:
    """A detour that runs each insertion of one site on its own rows.

    Args:
        opened: the route.
        address: the module's name.
        heads: for each row the weights that the module needs, or None if it holds the right ones.

    Raises:
        RouteError: a delta reads weights that differ between rows.
    """

    def __init__(self, opened: Batch, address: str, site: Site, heads: Sequence[Head | None]) -> None:
        self.route, self.address = opened, address
        one = next(site.parameters(), None)
        device = (
            next((p.device for p in opened.backbone.parameters()), torch.device("cpu")) if one is None else one.device
        )
        acting = [None if row is None else site._modules.get(row.name) for row in opened.rows]
        if any(heads) and any(one is not None and one.reads_weight for one in acting):
            msg = (
                f"{address} has other weights for some rows, and a delta there reads the weights that the backbone holds. "
                "Leave the layer out of that delta, or route no other delta that trained it."
            )
            raise RouteError(msg)
        copies = {size: size // len(opened.rows) for size in opened.sizes}
        self.plans = {size: _plan(acting, heads, times, device) for size, times in copies.items()}
        plans = self.plans.values()
        self.enters = any(plan.before for plan in plans)
        self.leaves = any(plan.after for plan in plans)
        self.attends = any(plan.attend for plan in plans)

    def __reduce__(self) -> Any:
        return type(None), ()

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Run each `before` on its rows of the target's arguments."""
        if not self.enters:
            return args, kwargs
        plan = self.plans[self.route.check(self.address, first_input(args, kwargs))]
        return plan.before.before(target, args, kwargs) if plan.before else (args, kwargs)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Run each head and each `after` on its rows of the target's output."""
        if not self.leaves:
            return output
        for split in self.plans[self.route.check(self.address, hidden_of(output))].after:
            output = split.after(target, args, kwargs, output)
        return output

    def attend(self, target: nn.Module, call: Any) -> Any:
        """Run each `attend` on its rows."""
        if not self.attends:
            return call
        for insertion, rows in self.plans[self.route.check(self.address, call.query, certain=True)].attend:
            call = insertion.attend(target, call.for_rows(rows))
        return call.for_rows(None)


def _plan(acting: Sequence[Any], heads: Sequence[Head | None], times: int, device: torch.device) -> _Plan:
    acting = [one for one in acting for _ in range(times)]
    own_heads = [one for one in heads for _ in range(times)]

    def only(method: str) -> list[Insertion | None]:
        return [one if one is not None and overrides(one, method) else None for one in acting]

    befores, afters, attends = only("before"), only("after"), only("attend")
    stages = [Split.of(own_heads, device)] if any(own_heads) else []
    stages += [Split.of(afters, device, stackable)] if any(one is not None for one in afters) else []
    several = len({id(one) for one in attends}) > 1
    masks = {
        id(one): (one, torch.tensor([other is one for other in attends], device=device) if several else None)
        for one in attends
        if one is not None
    }
    before = Split.of(befores, device) if any(one is not None for one in befores) else None
    return _Plan(before, tuple(stages), tuple(masks.values()))
