"""Writing deltas into the backbone's weights and taking them out again.

    W' = W + (alpha / r) B A        computed in float32 or wider, then rounded to the weight's own precision

The bytes before the first merge are kept, so `unmerge` restores them exactly.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.guards import refuse_routed
from deltahub.engine.insertion import overrides
from deltahub.engine.ledger import (
    ATTRIBUTE,
    Entry,
    Ledger,
    drop_ledger,
    entries_of,
    ledger_holding,
    ledger_of,
    tensor_called,
)
from deltahub.engine.modules import module_at, own_modules
from deltahub.engine.sharding import reshard
from deltahub.engine.site import CHILD, Site, eject, site_of
from deltahub.errors import MergeError

LOGGER: Final = logging.getLogger("deltahub")


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Attributes:
        rounding: name of each backbone tensor that was changed, and the largest error that rounding made in it.
    """

    rounding: Mapping[str, float]

    @property
    def max_error(self) -> float:
        """The largest rounding error of all."""
        return max(self.rounding.values(), default=0.0)


class MergeMixin:
    """Merging of a delta; the delta models inherit it."""

    backbone_model: nn.Module

    if TYPE_CHECKING:
        _entry: Entry

    @property
    def merged(self) -> bool:
        """Whether the delta is written into the backbone's weights."""
        return self._entry.name in ledger_holding(self.backbone_model, self._entry).merged

    def merge(self) -> MergeReport:
        """Write the delta into the backbone's weights, so that it costs nothing in a forward pass.

        The original bytes are kept in memory for `unmerge`. Until then no delta can be added, attached or detached.

        Returns:
            Which tensors changed, and how far each is from its exact value after rounding.

        Raises:
            MergeError: it is merged already or detached, its method cannot be merged, a weight is tied to another
                module's, or another delta acts before it in the same place. Nothing was changed.
        """
        refuse_routed(self.backbone_model)
        report = _merge(self.backbone_model, self._entry)
        LOGGER.info("Merged %s into %d tensors, rounding error %.3g", *_facts(self._entry, report))
        return report

    def unmerge(self) -> None:
        """Take the delta out of the weights; with the last one, every byte is what it was.

        Raises:
            MergeError: it is not merged, or another delta was merged on top of it. Nothing was changed.
        """
        ledger = ledger_holding(self.backbone_model, self._entry)
        if not self.merged:
            msg = f"{self._entry.name!r} is not merged, so there is nothing to take out. Call merge() first."
            raise MergeError(msg)
        names = [name for name in ledger.merged if name != self._entry.name]
        _check_on_top(ledger, self._entry)
        reshard(self.backbone_model)
        _restore(self.backbone_model, ledger)
        for name in names:  # again in their order, from the original bytes
            _merge(self.backbone_model, ledger.entries[name])


def _check_on_top(ledger: Ledger, entry: Entry) -> None:
    for name in ledger.merged[ledger.merged.index(entry.name) + 1 :]:
        if shared := entry.insertions.keys() & ledger.entries[name].insertions.keys():
            msg = f"{name!r} was merged on top of it at {min(shared)}, so {entry.name!r} cannot come out: unmerge() that first."
            raise MergeError(msg)


def _facts(entry: Entry, report: MergeReport) -> tuple[str, int, float]:
    return entry.name, len(report.rounding), report.max_error


@torch.no_grad()
def _merge(backbone: nn.Module, entry: Entry) -> MergeReport:
    reshard(backbone)
    ledger = ledger_holding(backbone, entry)
    _check_mergeable(ledger, entry)
    planned = dict(_plan(backbone, ledger, entry))
    rounding = {}
    for name, exact in planned.items():
        live = tensor_called(backbone, name)
        ledger.originals.setdefault(name, live.detach().clone())
        live.copy_(exact)
        rounding[name] = (live.to(exact.dtype) - exact).abs().max().item()
    for address in entry.insertions:
        site_of(module_at(backbone, address)).turn(entry.name, on=False)
    ledger.merged.append(entry.name)
    return MergeReport(rounding)


def _check_mergeable(ledger: Ledger, entry: Entry) -> None:
    if entry.name in ledger.merged:
        msg = f"{entry.name!r} is merged already. Call unmerge() before merging it again."
        raise MergeError(msg)
    if not entry.attached:
        msg = f"{entry.name!r} is detached, so it does not act and there is nothing to merge. Call attach() first."
        raise MergeError(msg)


def _plan(backbone: nn.Module, ledger: Ledger, entry: Entry) -> Iterator[tuple[str, Tensor]]:
    """The new value of each tensor; whatever speaks against the merge is raised here."""
    owners = _owners(backbone)
    for address, insertion in entry.insertions.items():
        target = module_at(backbone, address)
        _check_alone(address, site_of(target), ledger, entry.name)
        _refuse_meta(address, target)
        try:
            values = insertion.merged(target)
        except MergeError as error:
            msg = f"{entry.name!r} cannot be merged into {address or 'the backbone'}: {error}. Use it unmerged."
            raise MergeError(msg) from error
        for key, exact in values.items():
            name = f"{address}.{key}" if address else key
            _check_tensor(name, tensor_called(backbone, name), exact, owners, ledger)
            yield name, exact


def _check_alone(address: str, site: Site, ledger: Ledger, name: str) -> None:
    """Merged work is done first, inside the layer, so nothing that acts there may have to come before it."""
    insertion, active = site.slots[name], list(site._modules)
    others = [other for other in active if other != name]
    earlier = active[: active.index(name)]
    in_the_way = others if overrides(insertion, "before") else [o for o in earlier if overrides(site.slots[o], "after")]
    # What reads the weights would read another delta's work in them.
    beside = [*others, *(other for other in ledger.merged if other in site.slots)]
    in_the_way += [other for other in beside if insertion.reads_weight or site.slots[other].reads_weight]
    if in_the_way:
        remedy = "Detach one of them." if insertion.reads_weight else f"Merge or detach {in_the_way[0]!r} first."
        msg = f"{name!r} cannot be merged: {in_the_way[0]!r} acts on {address} too, and a merge would change what they do."
        raise MergeError(f"{msg} {remedy}")


def _refuse_meta(address: str, target: nn.Module) -> None:
    for key, parameter in target._parameters.items():
        if parameter is not None and parameter.is_meta:
            name = f"{address}.{key}" if address else key
            msg = f"{name} is on the meta device (offloaded, or without values). Merge into a backbone that is loaded as a whole."
            raise MergeError(msg)


def _check_tensor(name: str, live: Tensor, exact: Tensor, owners: Mapping[int, list[str]], ledger: Ledger) -> None:
    if not live.is_floating_point():
        msg = f"{name} has dtype {live.dtype}, expected floating-point values. Merge into an unquantised backbone."
        raise MergeError(msg)
    if len(names := owners.get(id(live), [])) > 1:
        other = next(n for n in names if n != name)
        msg = f"{name} is also {other} (tied weights), so a merge would change both. Use the delta unmerged, or untie them."
        raise MergeError(msg)
    if name in ledger.base:
        msg = f"{name} is trained as a whole by a delta as well, which a merge would mix up. Use the delta unmerged."
        raise MergeError(msg)
    if not torch.isfinite(exact.to(live.dtype)).all():
        msg = f"{name} would not be finite as {live.dtype} after the merge. Merge into a backbone of a wider precision."
        raise MergeError(msg)


def _owners(backbone: nn.Module) -> dict[int, list[str]]:
    """The names that each of the backbone's own parameters goes by."""
    found: dict[int, list[str]] = {}
    for name, module in own_modules(backbone):
        for key, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append(f"{name}.{key}" if name else key)
    return found


@torch.no_grad()
def _restore(backbone: nn.Module, ledger: Ledger) -> None:
    for name, original in ledger.originals.items():
        tensor_called(backbone, name).copy_(original)
    for merged in ledger.merged:
        for address in ledger.entries[merged].insertions:
            site_of(module_at(backbone, address)).turn(merged, on=True)
    ledger.originals.clear()
    ledger.merged.clear()


def merged_copy(backbone: nn.Module) -> Any:
    """A copy of a backbone with every attached delta written into its weights, and no trace of deltas: for export.

    Args:
        backbone: a backbone with deltas; it is left as it is.

    Returns:
        A model of the backbone's own class, as plain as it was before the first delta.

    Raises:
        MergeError: an attached delta cannot be merged.
    """
    refuse_routed(backbone)
    twin = copy.deepcopy(backbone)
    ledger = ledger_of(twin)
    for entry in entries_of(twin):
        if entry.attached and entry.name not in ledger.merged:
            _merge(twin, entry)
    for entry in entries_of(twin):
        for address in entry.insertions:
            if CHILD in (target := module_at(twin, address))._modules:
                eject(target, entry.name)
    drop_ledger(twin)
    assert ATTRIBUTE not in twin.__dict__
    return twin
