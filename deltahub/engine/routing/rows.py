"""Splitting a batch by rows, so that each insertion sees its own, and joining it again out of place.

The rows 0 to 5 become the parts 0 3 | 1 | 2 4 5 with their insertions: a, b, none. Joined they are 0 3 1 2 4 5, and are then
put back in order. Gradients flow through every step.

While a route is open, each insertion and each head of a module acts on its own rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deltahub.engine.insertion import Args, Insertion, Kwargs, acts_in, first_input, map_hidden, stackable
from deltahub.engine.ledger import Entry
from deltahub.engine.routing.heads import Head
from deltahub.engine.site import Site
from deltahub.errors import RouteError


class Treatment(Protocol):
    """The work on rows after a module: an insertion, or a head's own weights (`engine/routing/heads.py`)."""

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the output of the target."""
        ...


@dataclass(frozen=True, eq=False)
class Share:
    """Some rows of a batch.

    Attributes:
        rows: their numbers, ``(n,)`` integers.
        acting: what acts on each row, possibly the same on several; empty where nothing acts.
    """

    rows: Tensor
    acting: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """All rows of a batch in parts.

    Attributes:
        size: number of rows in the batch.
        parts: at least one.
        order: for each row its position in the concatenated parts; None if that is its number.
    """

    size: int
    parts: tuple[Share, ...]
    order: Tensor | None

    @classmethod
    def of(cls, acting: Sequence[Any], device: torch.device, key: Callable[[Any], Hashable] = id) -> Split:
        """Split the rows by what acts on them.

        Args:
            acting: for each row what acts on it, or None.
            key: returns equal keys for those that can act at once, as in `Insertion.after_rows`.
        """
        groups: dict[Hashable, list[int]] = {}
        for row, actor in enumerate(acting):
            groups.setdefault(None if actor is None else key(actor), []).append(row)
        parts = []
        for group, rows in groups.items():
            members = () if group is None else tuple(acting[row] for row in rows)
            parts.append(Share(torch.tensor(rows, device=device), members))
        placed = [row for rows in groups.values() for row in rows]
        in_place = placed == list(range(len(acting)))
        order = None if in_place else torch.tensor(sorted(range(len(acting)), key=placed.__getitem__), device=device)
        return cls(len(acting), tuple(parts), order)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Apply what acts on each part to its rows of an output."""
        if len(self.parts) == 1 and isinstance(output, Tensor):  # nothing to select and nothing to join
            changed = self._changed(self.parts[0], target, args, kwargs, output)
            if not isinstance(changed, Tensor) or changed.shape != output.shape:
                raise _reshaped(target, output, changed)
            return changed

        def change(hidden: Tensor) -> Tensor:
            taken, changed = [], []
            for part in self.parts:
                rows = self._take(hidden, part.rows)
                share = _with_hidden(output, rows)
                taken.append(rows)
                changed.append(hidden_of(self._changed(part, target, args, kwargs, share)))
            joined: Tensor = self._join(hidden, taken, changed, target)
            return joined

        return map_hidden(output, change)

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Apply what acts on each part to its rows of a module's arguments."""
        taken = [(self._take(args, part.rows), self._take(kwargs, part.rows)) for part in self.parts]
        changed = [
            part.acting[0].before(target, *arguments) if part.acting else arguments
            for part, arguments in zip(self.parts, taken, strict=True)
        ]
        joined: tuple[Args, Kwargs] = self._join((args, kwargs), taken, changed, target)
        return joined

    def _changed(self, part: Share, target: nn.Module, args: Args, kwargs: Kwargs, share: Any) -> Any:
        if not part.acting:
            return share
        if len(self.parts) > 1:
            args, kwargs = self._take(args, part.rows), self._take(kwargs, part.rows)
        first = part.acting[0]
        if all(actor is first for actor in part.acting):
            return first.after(target, args, kwargs, share)
        at_once = type(first).after_rows(part.acting, target, args, kwargs, share)
        if at_once is NotImplemented:
            return Split.of(part.acting, part.rows.device).after(target, args, kwargs, share)
        return at_once

    def _take(self, value: Any, rows: Tensor) -> Any:
        """Select rows of every tensor that has one for each row of the batch; other values stay whole."""
        if isinstance(value, Tensor):
            mine = value.dim() > 0 and value.shape[0] == self.size and len(self.parts) > 1
            return value.index_select(0, rows.to(value.device)) if mine else value
        if type(value) in (tuple, list):
            return type(value)(self._take(item, rows) for item in value)
        return {key: self._take(item, rows) for key, item in value.items()} if type(value) is dict else value

    def _join(self, value: Any, taken: Sequence[Any], changed: Sequence[Any], target: nn.Module) -> Any:
        """Join the parts of a value; a value that no part changed stays the same object."""
        if all(original is result for original, result in zip(taken, changed, strict=True)):
            return value
        if isinstance(value, Tensor):
            if len(self.parts) > 1 and (value.dim() == 0 or value.shape[0] != self.size):
                raise _refused(target, f"a tensor that all rows share, {list(value.shape)}, into another")
            for original, result in zip(taken, changed, strict=True):
                if not isinstance(result, Tensor) or original.shape != result.shape:
                    raise _reshaped(target, original, result)
            joined = changed[0] if len(changed) == 1 else torch.cat([result.to(value.dtype) for result in changed])
            return joined if self.order is None else joined.index_select(0, self.order.to(joined.device))
        if type(value) in (tuple, list) and all(type(c) is type(value) and len(c) == len(value) for c in changed):
            return type(value)(
                self._join(item, [t[i] for t in taken], [c[i] for c in changed], target) for i, item in enumerate(value)
            )
        if type(value) is dict and all(isinstance(c, Mapping) and c.keys() == value.keys() for c in changed):
            return {k: self._join(v, [t[k] for t in taken], [c[k] for c in changed], target) for k, v in value.items()}
        raise _refused(target, "its input into something else")


def hidden_of(output: Any) -> Any:
    """Return the hidden state of an output: see `map_hidden`."""
    if isinstance(output, Tensor) or not output:
        return output
    return output[0] if isinstance(output, tuple) else next(iter(output.values()))


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    result = copy.copy(output) if isinstance(output, dict) else output  # map_hidden writes into a dict
    return map_hidden(result, lambda _: hidden)


def _reshaped(target: nn.Module, original: Tensor, result: Any) -> RouteError:
    form = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
    return _refused(target, f"{list(original.shape)} into {form}")


def _refused(target: nn.Module, how: str) -> RouteError:
    msg = f"A delta at a {type(target).__name__} turns {how}, so rows of a batch cannot go through it one by one."
    return RouteError(f"{msg} Attach it alone and call the backbone without route().")


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
    """A detour that runs each insertion of a site on its own rows.

    Args:
        opened: the route.
        address: the module's name.
        heads: for each row the weights that the module needs, or None if it holds the right ones.

    Raises:
        RouteError: a delta reads weights that differ between rows.
    """

    def __init__(self, opened: Batch, address: str, site: Site, heads: Sequence[Head | None]) -> None:
        self.route, self.address = opened, address
        parameter = next(site.parameters(), None)
        device = (
            next((p.device for p in opened.backbone.parameters()), torch.device("cpu"))
            if parameter is None
            else parameter.device
        )
        acting = [None if row is None else site._modules.get(row.name) for row in opened.rows]
        if any(heads) and any(insertion is not None and insertion.reads_weight for insertion in acting):
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
    acting = [insertion for insertion in acting for _ in range(times)]
    own_heads = [head for head in heads for _ in range(times)]

    def only(method: str) -> list[Insertion | None]:
        return [insertion if insertion is not None and acts_in(insertion, method) else None for insertion in acting]

    befores, afters, attends = only("before"), only("after"), only("attend")
    stages = [Split.of(own_heads, device)] if any(own_heads) else []
    stages += [Split.of(afters, device, stackable)] if any(insertion is not None for insertion in afters) else []
    several = len({id(insertion) for insertion in attends}) > 1
    masks = {
        id(insertion): (
            insertion,
            torch.tensor([row_insertion is insertion for row_insertion in attends], device=device) if several else None,
        )
        for insertion in attends
        if insertion is not None
    }
    before = Split.of(befores, device) if any(insertion is not None for insertion in befores) else None
    return _Plan(before, tuple(stages), tuple(masks.values()))
