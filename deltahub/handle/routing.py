"""Routing: each row of a batch through its own delta.

    with deltahub.route(backbone, [en, fr, None, en]):      rows 0 and 3: en, row 1: fr, row 2: the bare backbone
        backbone(**batch)

While a route is open, the sites of the backbone have a `detour` that shows each delta only its rows (`engine/routing/rows.py`).
It is an attribute of the site, not of the thread: gradient checkpointing recomputes parts in autograd's own threads.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.dummy_inputs import possible_inputs
from deltahub.engine.insertion import acts_in, map_hidden
from deltahub.engine.ledger import ATTRIBUTE, Entry, Ledger
from deltahub.engine.modules import own_modules
from deltahub.engine.routing.heads import heads_of
from deltahub.engine.routing.rows import DetourByRows
from deltahub.engine.shapes import meta_copy
from deltahub.engine.site import CHILD, Site, close_site, open_site
from deltahub.errors import RouteError

if TYPE_CHECKING:
    from deltahub.handle.base import DeltaBase


_BATCH, _LENGTH = 3, 5


def modules_with_rows_first(backbone: nn.Module, addresses: Collection[str]) -> set[str]:
    """Return the modules that return one hidden state per row, as seen in a pseudo forward pass of a few rows.

    The pass runs on the meta device. A module that it does not reach is not included.
    """
    clone = meta_copy(backbone).eval()
    is_first: dict[str, bool] = {}

    def watch(address: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            def see(hidden: torch.Tensor) -> torch.Tensor:
                is_first[address] = is_first.get(address, True) and hidden.shape[0] == _BATCH
                return hidden

            map_hidden(output, see)

        return hook

    for address in addresses:
        clone.get_submodule(address).register_forward_hook(watch(address))
    for inputs in possible_inputs(backbone, _BATCH, _LENGTH):
        try:
            with torch.no_grad():
                clone(**inputs)
            break
        except Exception:  # noqa: BLE001, S112  # a model can raise anything on dummy inputs; the next set may work
            continue
    return {address for address, first in is_first.items() if first}


_LOCK: Final = threading.Lock()


@contextmanager
def route(backbone: nn.Module, rows: Sequence[DeltaBase | str | None], *, beams: int = 1) -> Iterator[None]:
    """Send each row of a batch through its own delta, for the duration of the block.

    Only these deltas act, each on its rows; other attached deltas are inactive. Heads trained by deltas are routed too.
    With gradient checkpointing, the backward pass belongs inside the block as well, because it recomputes parts.

    Args:
        backbone: the backbone that the deltas are on.
        rows: for each row of the batch a delta or its name, or None for the bare backbone.
        beams: number of sequences that `generate` keeps for each row (`num_beams`, or `num_return_sequences`): a batch of
            ``len(rows) * beams`` is accepted too, with the sequences of a row side by side.

    Raises:
        RouteError: a delta is not on this backbone, is detached or merged, or changes the length of a sequence; the batch has
            another number of rows; a module mixes rows; or a route is open already.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger):
        msg = "There is no delta on this backbone, so nothing can be routed. Add or load deltas first."
        raise RouteError(msg)
    if not isinstance(beams, int) or beams < 1:
        msg = f"beams must be a whole number of at least 1, got {beams!r}."
        raise RouteError(msg)
    with _LOCK:
        if ledger.route is not None:
            msg = (
                "A route is open on this backbone already. Leave its `with` block first, or use a copy of the backbone."
            )
            raise RouteError(msg)
        ledger.route = opened = _Route(backbone, _entries(ledger, rows), beams)
    try:
        opened.enter(ledger)
        yield
    finally:
        opened.leave()
        ledger.route = None


def _entries(ledger: Ledger, rows: Sequence[DeltaBase | str | None]) -> tuple[Entry | None, ...]:
    if isinstance(rows, str) or not rows:
        msg = f"A route lists a delta or None for each row of the batch, got {rows!r}."
        raise RouteError(msg)
    if ledger.merged:
        msg = f"{ledger.merged[0]!r} is merged into the backbone's weights, where it acts on every row. Call unmerge() first."
        raise RouteError(msg)
    entries = {id(row): _entry(ledger, row) for row in rows if row is not None}
    return tuple(None if row is None else entries[id(row)] for row in rows)


def _entry(ledger: Ledger, delta: DeltaBase | str) -> Entry:
    name = delta if isinstance(delta, str) else getattr(delta, "name", None)
    entry = ledger.entries.get(name) if isinstance(name, str) else None
    if entry is None or (not isinstance(delta, str) and delta._entry is not entry):
        names = ", ".join(map(repr, ledger.entries))
        msg = (
            f"{name or delta!r} is not a delta on this backbone, which has {names or 'none'}. It may have been removed."
        )
        raise RouteError(msg)
    if not entry.attached:
        msg = f"{name!r} is detached. Call attach() first: a route lets only its own rows see it."
        raise RouteError(msg)
    if shared := sorted(name for name, insertion in entry.insertions.items() if acts_in(insertion, "substitute")):
        msg = f"{name!r} acts on parameters of {shared[0]}, which all rows of a batch share."
        raise RouteError(f"{msg} Attach it alone and call the backbone without route().")
    if any(not insertion.keeps_length for insertion in entry.insertions.values()):
        kind = entry.config.delta_type
        why = "changes the length of a sequence, or acts where rows cannot be told apart (nn.MultiheadAttention)"
        msg = f"{name!r} is of type {kind} and {why}, so the rows of a batch cannot pass through it one by one."
        raise RouteError(f"{msg} Attach it alone and call the backbone without route().")
    return entry


class _Route:
    """An open route on a backbone; a copy of the backbone has none."""

    def __init__(self, backbone: nn.Module, rows: tuple[Entry | None, ...], beams: int) -> None:
        self.backbone = backbone
        self.rows = rows
        self.sizes: tuple[int, ...] = (len(rows), len(rows) * beams)
        self.sites: list[Site] = []
        self.opened: list[nn.Module] = []
        self.row_modules: set[str] | None = None  # modules that return rows first, computed when first needed

    def __reduce__(self) -> Any:
        return type(None), ()

    def enter(self, ledger: Ledger) -> None:
        """Set a detour at every module where a delta acts or has its own weights."""
        self._refuse_others(ledger)
        heads = {address: (module, chosen) for address, module, chosen in heads_of(self.backbone, ledger, self.rows)}
        for module, _ in heads.values():
            if open_site(module):
                self.opened.append(module)
        for address, module in own_modules(self.backbone):
            site = module._modules.get(CHILD)
            if isinstance(site, Site):
                chosen = heads[address][1] if address in heads else (None,) * len(self.rows)
                site.detour = DetourByRows(self, address, site, chosen)
                self.sites.append(site)

    def _refuse_others(self, ledger: Ledger) -> None:
        """Raise if deltas of other handles are active: they would act on every row, regardless of the route."""
        for address, module in own_modules(self.backbone):
            site = module._modules.get(CHILD)
            for name, insertion in site._modules.items() if isinstance(site, Site) else ():
                entry = ledger.entries.get(name)
                if entry is None or entry.insertions.get(address) is not insertion:
                    msg = (
                        f"{name!r} acts at {address} and was put on a part of this model or on a model around it, where a "
                        "route does not reach it. Detach it, or put all deltas on the same model."
                    )
                    raise RouteError(msg)

    def leave(self) -> None:
        """Let every delta act on all rows again."""
        for site in self.sites:
            site.detour = None
        for module in self.opened:
            close_site(module)

    def check(self, address: str, hidden: Any, *, certain: bool = False) -> int:
        """Return the number of rows of a hidden state.

        Args:
            certain: whether rows are known to come first.

        Raises:
            RouteError: the number is not one of the route's, or it is not certain that rows come first.
        """
        place = address or "the backbone"
        if not isinstance(hidden, Tensor) or hidden.dim() == 0:
            msg = f"{place} is called with a {type(hidden).__name__}, expected a tensor with a row for each row of the batch."
            raise RouteError(msg)
        size = hidden.shape[0]
        if size not in self.sizes:
            raise RouteError(self._wrong_size(place, tuple(hidden.shape)))
        chosen = hidden.dim() == 2 and any("experts" in part for part in address.split("."))
        square = hidden.dim() > 2 and hidden.shape[1] == size > 1
        if not certain and (chosen or (square and not self._has_rows_first(address))):
            msg = (
                f"{place} is given {list(hidden.shape)}, and it is not certain that the first dimension counts the {size} rows "
                "of the batch. Pad the batch to another length, or route no delta that acts there."
            )
            raise RouteError(msg)
        return size

    def _wrong_size(self, place: str, shape: tuple[int, ...]) -> str:
        rows, size = len(self.rows), shape[0]
        msg = f"The route has {rows} rows, the batch has {size} ({place} is given {list(shape)})."
        more = (
            f"If these are beams of generate(), pass beams={size // rows}. " if size > rows and size % rows == 0 else ""
        )
        return (
            f"{msg} List one delta or None for each row of the batch. {more}A module that does not take one entry for each row "
            "(the length first, the tokens of all rows together, windows of an image) cannot be routed."
        )

    def _has_rows_first(self, address: str) -> bool:
        if self.row_modules is None and not torch.compiler.is_compiling():
            holders = [name for name, module in own_modules(self.backbone) if CHILD in module._modules]
            self.row_modules = modules_with_rows_first(self.backbone, holders)
        return address in (self.row_modules or ())
