"""Attaching and detaching deltas: the cost depends on the delta itself, not on the number of others that are loaded.

The handle calls `check_places` before each change.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from torch import nn

from deltahub.engine.guards import note_compiled, refuse_busy, refuse_merged, refuse_routed
from deltahub.engine.ledger import ATTRIBUTE, Entry, Ledger, check_tensors, entries_of, ledger_holding, ledger_of
from deltahub.engine.modules import module_at
from deltahub.engine.offloading import device_of
from deltahub.engine.sharding import reshard
from deltahub.engine.site import eject, holds, insert, site_of
from deltahub.errors import TargetError
from deltahub.handle.freezing import prefix_of

_LOCK: Final = threading.Lock()


@dataclass
class _Off:
    """A delta that is off for the duration of blocks.

    Attributes:
        attached: whether it was attached before.
        active: the addresses where it was active.
        blocks: the number of open blocks.
    """

    attached: bool
    active: list[str]
    blocks: int = 0


_OFF: Final[dict[int, _Off]] = {}  # by the id of the entry


def add(backbone: nn.Module, entry: Entry) -> Ledger:
    """Insert a new delta at its modules of a backbone, enter it in the backbone's ledger, and return the ledger."""
    targets = {address: module_at(backbone, address) for address in entry.insertions}
    ledger = ledger_of(backbone)
    for address, insertion in entry.insertions.items():
        insert(targets[address], entry.name, insertion, address)
    ledger.entries[entry.name] = entry
    note_compiled(backbone, targets.values())
    return ledger


def attach(backbone: nn.Module, entry: Entry, module: nn.Module | None, reset_state_dict: bool) -> None:
    """Activate a delta again: see `DeltaBase.attach`.

    Raises:
        TargetError: the delta was removed.
        AddressError: `module` is not part of the backbone.
        MergeError: deltas are merged.
        RouteError: a route is open.
    """
    ledger = ledger_holding(backbone, entry)  # raises if the delta was removed
    _switch(backbone, entry, True, module)
    if reset_state_dict:
        ledger.only_trainable = ledger.filter_asked


def detach(backbone: nn.Module, entry: Entry, module: nn.Module | None, reset_state_dict: bool) -> None:
    """Deactivate a delta: see `DeltaBase.detach`.

    Raises:
        TargetError, AddressError, MergeError, RouteError: as for `attach`.
    """
    ledger = ledger_holding(backbone, entry)
    _switch(backbone, entry, False, module)
    _stay_off(backbone, entry, module)
    if reset_state_dict and not any(other.attached for other in entries_of(backbone)):
        ledger.only_trainable = False


def forget(backbone: nn.Module, entry: Entry) -> None:
    """Remove a detached delta for good: see `DeltaBase.remove`."""
    for address in entry.insertions:
        eject(module_at(backbone, address), entry.name)
    ledger_holding(backbone, entry).forget(backbone, entry)
    note_compiled(backbone, (module_at(backbone, address) for address in entry.insertions))


def _switch(backbone: nn.Module, entry: Entry, on: bool, module: nn.Module | None) -> None:
    refuse_merged(backbone)
    refuse_routed(backbone)
    prefix = prefix_of(backbone, module)
    refuse_busy(site_of(module_at(backbone, address)) for address in entry.insertions)
    reshard(backbone)
    _turn(backbone, entry, on, [address for address in entry.insertions if f"{address}.".startswith(prefix)])
    if module is None:
        ledger_holding(backbone, entry).switch(backbone, entry, on)


def _turn(backbone: nn.Module, entry: Entry, on: bool, addresses: Iterable[str]) -> None:
    for address in addresses:
        target = module_at(backbone, address)
        if on:
            entry.insertions[address].to(device_of(target, backbone)).train(target.training)
        site_of(target).turn(entry.name, on)


@contextmanager
def off(backbone: nn.Module, entry: Entry) -> Iterator[None]:
    """Deactivate a delta for the duration of a block: see `DeltaBase.off`.

    Raises:
        TargetError, MergeError, RouteError: as for `detach`. Nothing was changed.
    """
    key = id(entry)
    with _LOCK:  # blocks of several threads may overlap: the first one switches it off, the last one on again
        if key not in _OFF:
            active = [a for a in entry.insertions if entry.name in site_of(module_at(backbone, a))._modules]
            was = (entry.attached, active)
            _switch(backbone, entry, False, None)
            _OFF[key] = _Off(*was)
        _OFF[key].blocks += 1
    try:
        yield
    finally:
        with _LOCK:
            state = _OFF[key]
            state.blocks -= 1
            if not state.blocks:
                del _OFF[key]
                _turn_back(backbone, entry, state)


def _stay_off(backbone: nn.Module, entry: Entry, module: nn.Module | None) -> None:
    """Note what was detached inside a block, and is not to come back after it."""
    with _LOCK:
        if (state := _OFF.get(id(entry))) is not None:
            prefix = prefix_of(backbone, module)
            state.active = [address for address in state.active if not f"{address}.".startswith(prefix)]
            state.attached = state.attached and module is not None


def _turn_back(backbone: nn.Module, entry: Entry, state: _Off) -> None:
    """Activate what was active before a block, unless the delta was removed in it."""
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if isinstance(ledger, Ledger) and ledger.entries.get(entry.name) is entry:
        reshard(backbone)
        _turn(backbone, entry, True, state.active)
        ledger.switch(backbone, entry, state.attached)


def check_places(backbone: nn.Module, entry: Entry) -> None:
    """Check that the modules and tensors that a delta was put on are still in the backbone.

    Raises:
        TargetError: the delta was removed, or a module that holds it or a tensor that it replaced has been exchanged since.
    """
    ledger_holding(backbone, entry)  # raises if the delta was removed
    for address, insertion in entry.insertions.items():
        if not holds(backbone, address, entry.name, insertion):
            msg = (
                f"{address} was replaced after the delta {entry.name!r} was put on it, so the delta no longer acts "
                "there. Change the backbone's modules before adding deltas."
            )
            raise TargetError(msg)
    check_tensors(backbone, entry)
