"""Merging deltas into the backbone's weights, and unmerging them.

    W' = W + (alpha / r) B A        computed in float32 or wider, then rounded to the weight's own precision

The bytes before the first merge are kept, so `unmerge` restores them exactly. A quantised weight takes W' as new codes, if that is asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deltahub.engine.building import check_dtype
from deltahub.engine.bypassed import is_multiplied
from deltahub.engine.guards import refuse_routed
from deltahub.engine.layers import is_quantised, reading_fault, writing_fault
from deltahub.engine.ledger import Entry, Ledger, drop_ledger, ledger_holding, uncalled, value_of
from deltahub.engine.modules import module_at, modules_by_name, own_modules
from deltahub.engine.overrides import (
    Override,
    drop_empty,
    forget_values,
    override_of,
    overrides,
    overrides_for,
    tensor_at,
)
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.quantised.layer import Quantised
from deltahub.engine.quantised.plain import cast, make_plain
from deltahub.engine.sharding import reshard
from deltahub.engine.site import CHILD, eject, site_of
from deltahub.engine.trainable import forget_trainable
from deltahub.errors import MergeError
from deltahub.handle.merge_checks import (
    check_alone,
    check_tensor,
    check_unclaimed,
    owners_of,
    refuse_meta,
    refuse_partitioned,
)
from deltahub.handle.plain_forwards import refuse_captured, restore_forwards
from deltahub.log import LOGGER


@dataclass(frozen=True)
class MergeReport:
    """The result of a merge.

    Attributes:
        rounding: name of each changed backbone tensor, with the largest rounding error in it.
        relative: the same with the norm of the rounding errors, relative to the norm of the exact values.
    """

    rounding: Mapping[str, float]
    relative: Mapping[str, float] = field(default_factory=dict)

    @property
    def max_error(self) -> float:
        """The largest rounding error of all tensors."""
        return max(self.rounding.values(), default=0.0)


@dataclass(frozen=True)
class _Change:
    """The new value of a tensor.

    Attributes:
        exact: the value before rounding.
        coded: the layer, if its weight is quantised.
        codes: the value as new codes of that layer.
    """

    exact: Tensor
    coded: Quantised | None = None
    codes: Any = None

    def write(self, live: Tensor, record: Override) -> Tensor:
        """Write the value, keep the backbone's own, and return the rounding errors."""
        if self.coded is None:
            if record.base is None:
                record.base = live.detach().clone()
            live.copy_(self.exact)
            return live.to(self.exact.dtype) - self.exact
        old = self.coded.swap(self.codes)
        record.codes = old if record.codes is None else record.codes
        return self.coded.values().to(self.exact) - self.exact


def merge(backbone: nn.Module, entry: Entry, *, requantise: bool = False) -> MergeReport:
    """Merge a delta into the backbone's weights: see `DeltaBase.merge`; the handle calls `check_places` before.

    Raises:
        MergeError: the merge is impossible. Nothing was changed.
        TargetError: the delta was removed.
        RouteError: a route is open.
    """
    refuse_routed(backbone)
    silent = uncalled(backbone, entry.name, entry.insertions, entry.serial)
    report = _merge(backbone, entry, silent, requantise=requantise)
    LOGGER.info("Merged %s into %d tensors, rounding error %.3g", entry.name, len(report.rounding), report.max_error)
    return report


def unmerge(backbone: nn.Module, entry: Entry) -> None:
    """Take a merged delta out of the weights: see `DeltaBase.unmerge`.

    Raises:
        MergeError: the delta is not merged, or another delta was merged on top of it. Nothing was changed.
        TargetError: the delta was removed.
    """
    ledger = ledger_holding(backbone, entry)
    if entry.name not in ledger.merged:
        msg = f"{entry.name!r} is not merged, so there is nothing to take out. Call merge() first."
        raise MergeError(msg)
    names = [name for name in ledger.merged if name != entry.name]
    _check_on_top(ledger, entry)
    reshard(backbone)
    _restore(backbone, ledger)
    for name in names:  # merged again in their order, from the original bytes
        _merge(backbone, ledger.entries[name], requantise=True)


def _check_on_top(ledger: Ledger, entry: Entry) -> None:
    for name in ledger.merged[ledger.merged.index(entry.name) + 1 :]:
        if shared := entry.insertions.keys() & ledger.entries[name].insertions.keys():
            msg = f"{name!r} was merged on top of it at {min(shared)}, so {entry.name!r} cannot come out: unmerge() that first."
            raise MergeError(msg)


def _merge(backbone: nn.Module, entry: Entry, silent: Collection[str] = (), *, requantise: bool = False) -> MergeReport:
    reshard(backbone)
    ledger = ledger_holding(backbone, entry)
    _check_mergeable(ledger, entry)
    refuse_partitioned(backbone)
    acting = [address for address in entry.insertions if entry.name in site_of(module_at(backbone, address))._modules]
    report = _write(backbone, entry.name, acting, ledger.changed, silent, requantise=requantise)
    ledger.merged.append(entry.name)
    return report


def _check_mergeable(ledger: Ledger, entry: Entry) -> None:
    if entry.name in ledger.merged:
        msg = f"{entry.name!r} is merged already. Call unmerge() before merging it again."
        raise MergeError(msg)
    if not entry.attached:
        msg = f"{entry.name!r} is detached, so it does not act and there is nothing to merge. Call attach() first."
        raise MergeError(msg)


@torch.no_grad()
def _write(
    backbone: nn.Module,
    name: str,
    addresses: Sequence[str],
    changed: set[str],
    silent: Collection[str],
    *,
    requantise: bool = False,
) -> MergeReport:
    """Merge a delta's insertions at some modules into the weights, after all checks.

    Args:
        changed: tensors that the same handle or export has merged into before; new ones are added.
        silent: modules where the delta has never acted, and must not begin to.
    """
    planned = dict(_plan(backbone, name, addresses, changed, silent, requantise=requantise))
    rounding, relative = {}, {}
    for tensor, record in overrides_for(backbone, planned).items():
        change = planned[tensor]
        errors = change.write(tensor_at(backbone, tensor), record)
        rounding[tensor] = errors.abs().max().item()
        relative[tensor] = (errors.norm() / change.exact.norm().clamp_min(torch.finfo(errors.dtype).tiny)).item()
    for address in addresses:
        site = site_of(module_at(backbone, address))
        site.turn(name, on=False)
        site.merged.append(name)
    changed.update(planned)
    return MergeReport(rounding, relative)


def _plan(
    backbone: nn.Module,
    delta: str,
    addresses: Sequence[str],
    changed: Collection[str],
    silent: Collection[str],
    *,
    requantise: bool,
) -> Iterator[tuple[str, _Change]]:
    """Yield the new value of each tensor, and raise if anything prevents the merge."""
    owners = owners_of(backbone)
    for address in addresses:
        target = module_at(backbone, address)
        site = site_of(target)
        check_alone(address, site, delta)
        refuse_meta(address, target)
        try:
            values = site.slots[delta].merged(target)
            if isinstance(target, nn.Embedding) and is_multiplied(backbone, address):
                raise MergeError("the backbone multiplies by its weight elsewhere, where the delta does not act")  # noqa: TRY301
            for key in values:
                holder, _, leaf = key.rpartition(".")
                if fault := writing_fault(module_at(target, holder), leaf, requantise=requantise):
                    raise MergeError(fault)  # noqa: TRY301
        except MergeError as error:
            msg = f"{delta!r} cannot be merged into {address or 'the backbone'}: {error}. Use it unmerged."
            raise MergeError(msg) from error
        for key, exact in values.items():
            holder, _, leaf = key.rpartition(".")
            coded = quantised(module_at(target, holder)) if leaf == "weight" else None
            key = key if coded is None else f"{key.removesuffix(leaf)}{coded.key}"  # noqa: PLW2901
            name = f"{address}.{key}" if address else key
            live = tensor_at(backbone, name)
            as_one = addresses if site.slots[delta].acts_as_one else ()
            check_tensor(name, live, exact if coded is not None else exact.to(live.dtype), owners, as_one)
            if address in silent and not _is_unchanged(live, exact, coded):
                msg = (
                    f"{delta!r} has never acted on {address}: the backbone ran without calling it, so a merge could change its "
                    "outputs. If other inputs reach it, run the backbone on them first; else leave the module out."
                )
                raise MergeError(msg)
            check_unclaimed(name, override_of(backbone, name), changed)
            yield name, _Change(exact) if coded is None else _Change(exact, coded, coded.quantise(exact))


def _is_unchanged(live: Tensor, exact: Tensor, coded: Quantised | None) -> bool:
    return (
        torch.equal(exact, coded.values().to(exact)) if coded is not None else torch.equal(exact.to(live.dtype), live)
    )


@torch.no_grad()
def _restore(backbone: nn.Module, ledger: Ledger) -> None:
    for name, record in overrides_for(backbone, ledger.changed).items():
        if record.codes is not None:
            coded = quantised(module_at(backbone, name.rpartition(".")[0]))
            assert coded is not None  # its codes were written
            coded.swap(record.codes)
            record.codes = None
        elif record.base is not None:
            tensor_at(backbone, name).copy_(record.base)
            record.base = None
    for merged in ledger.merged:
        for address in ledger.entries[merged].insertions:
            site = site_of(module_at(backbone, address))
            if merged in site.merged:
                site.merged.remove(merged)
                site.turn(merged, on=True)
    ledger.changed.clear()
    ledger.merged.clear()
    drop_empty(backbone)


@torch.no_grad()
def merged_tensors(backbone: nn.Module, entry: Entry) -> dict[str, Tensor]:
    """Return the values that the backbone's tensors would have with a delta merged, of those that change; nothing is changed.

    Raises:
        MergeError: the merge is impossible.
        TargetError: the delta was removed.
    """
    refuse_routed(backbone)
    reshard(backbone)
    _check_mergeable(ledger_holding(backbone, entry), entry)
    refuse_partitioned(backbone)
    acting = [address for address in entry.insertions if entry.name in site_of(module_at(backbone, address))._modules]
    silent = uncalled(backbone, entry.name, entry.insertions, entry.serial)
    own_values = {name: value_of(backbone, entry, name) for name in sorted(entry.replaced)}
    planned = _plan(backbone, entry.name, acting, (), silent, requantise=False)
    return {**own_values, **{name: change.exact.to(tensor_at(backbone, name).dtype) for name, change in planned}}


def merged_copy(backbone: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """Return a copy of a backbone with every attached delta merged and no trace of deltas, for export.

    Args:
        backbone: a backbone with deltas on itself, on its parts or on a model around it; it is not changed.
        dtype: the dtype of the copy's parameters and persistent buffers, by default the backbone's own. Quantised layers become
            plain ones of their dequantised values, as which the deltas are merged.

    Returns:
        A model of the backbone's own class, as plain as before the first delta, with the forward that it had before trainers.

    Raises:
        MergeError: an attached delta cannot be merged, with `dtype` a quantised layer cannot be read, or a forward that was put on a
            module would run the original.
        ConfigError: `dtype` is not a dtype of floating-point numbers of 16 bits or more.
    """
    _check_copy(backbone, dtype)
    return merged_for_good(copy.deepcopy(backbone), dtype)


def merged_for_good(backbone: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """Merge every attached delta into a backbone itself and leave no trace of deltas, without a second backbone in memory.

    Args and errors are those of `merged_copy`; after a `MergeError` a part may be merged.
    """
    _check_copy(backbone, dtype)
    restore_forwards(modules_by_name(backbone))
    changed = {name for name, record in overrides(modules_by_name(backbone)) if record.merged}
    if dtype is not None:
        make_plain(backbone)
    holders = [(address, module) for address, module in own_modules(backbone) if CHILD in module._modules]
    silent = {
        name: uncalled(backbone, name, [address for address, module in holders if name in site_of(module).slots])
        for name in {name for _, module in holders for name in site_of(module).slots}
    }
    for address, module in holders:
        for name in [*site_of(module)._modules]:
            _write(backbone, name, _as_one(holders, address, module, name), changed, silent[name])
    for _, module in own_modules(backbone):
        for name in [*site_of(module).slots] if CHILD in module._modules else ():
            eject(module, name)
        drop_ledger(module)
    forget_values(backbone)
    forget_trainable(backbone)
    if dtype is not None:
        cast(backbone, dtype)
    return backbone


def _check_copy(backbone: nn.Module, dtype: torch.dtype | None) -> None:
    refuse_routed(backbone)
    refuse_partitioned(backbone)
    refuse_captured(modules_by_name(backbone))
    if dtype is not None:
        check_dtype(dtype)
        _refuse_unreadable(backbone)


def _as_one(holders: Sequence[tuple[str, nn.Module]], address: str, module: nn.Module, name: str) -> list[str]:
    """Return the modules that a delta is merged into together with a module: those that share its weight, if it acts there as one."""
    if not site_of(module).slots[name].acts_as_one:
        return [address]
    weight = module._parameters.get("weight")
    shared = [a for a, m in holders if name in site_of(m)._modules and m._parameters.get("weight") is weight]
    return shared if weight is not None else [address]


def _refuse_unreadable(backbone: nn.Module) -> None:
    """Raise if a quantised layer cannot become a plain one.

    Raises:
        MergeError: one cannot.
    """
    for name, module in own_modules(backbone):
        coded = quantised(module)
        has_codes = any(not t.is_floating_point() for t in module._parameters.values() if t is not None)
        if (
            fault := coded.fault()
            if coded is not None
            else has_codes and is_quantised(module) and reading_fault(module)
        ):
            msg = f"{name or 'The backbone'} ({type(module).__name__}) cannot become a layer with a plain weight: {fault}."
            raise MergeError(msg)
