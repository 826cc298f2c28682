"""The ledger: the record of a backbone's deltas, stored on the backbone itself so that a copy carries its own.

A backbone can be a part of another one, and both can carry deltas: each has its own ledger. The values of backbone tensors
that deltas train, such as a classifier head, are stored at the tensors (`engine/overrides.py`), where both ledgers find them.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from deltahub.checkpoint.config import DeltaConfig
from deltahub.engine.insertion import Insertion, acts_in
from deltahub.engine.modules import module_at, modules_by_name, plain_name
from deltahub.engine.overrides import Override, drop_empty, override_of, overrides, overrides_for, tensor_at
from deltahub.engine.sharding import full_shape, full_tensor
from deltahub.engine.site import CHILD, is_delta_name, site_of, was_called
from deltahub.engine.tracing import while_tracing
from deltahub.engine.trainable import restore_trainable
from deltahub.errors import TargetError
from deltahub.log import LOGGER

ATTRIBUTE: Final = "_deltahub_ledger"
_NUMBER: Final = re.compile(r"(?<![^.])\d+(?![^.])")
_SERIALS: Final = itertools.count(time.time_ns())  # above those of earlier processes, which a pickle restores
_TRACED: Final[set[type[Any]]] = set()  # classes of backbones that torch.compile has traced


@dataclass
class Entry:
    """One delta on a backbone.

    Attributes:
        name: its name on this backbone, unique there.
        handle: the class of its handle, a DeltaBase.
        config: its configuration.
        insertions: real module name to insertion.
        replaced: names and shapes of the backbone tensors for which this delta has its own value.
        attached: whether it is active.
        parents: the deltas it was made from, as in `delta_config.json`.
        serial: tells apart deltas with equal names, and orders deltas by when they were added.
        lent: the strength of an open `scaled` block; None outside of one.
    """

    name: str
    handle: type[Any]
    config: DeltaConfig
    insertions: dict[str, Insertion]
    replaced: dict[str, tuple[int, ...]] = field(default_factory=dict)
    attached: bool = True
    parents: tuple[Mapping[str, str], ...] = ()
    serial: int = field(default_factory=lambda: next(_SERIALS))
    lent: float | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy or a pickle: no block ends there, so the strength of an open one is its own."""
        config = self.config if self.lent is None else replace(self.config, strength=self.lent)
        return {**vars(self), "config": config, "lent": None}


@dataclass
class Ledger:
    """All deltas on a backbone, in the order they were added.

    Attributes:
        entries: by name.
        only_trainable: whether `state_dict()` of the backbone leaves out frozen tensors.
        filter_asked: whether `freeze_module` requested that; it holds while a delta is attached.
        selected: whether `freeze_module` has chosen what trains.
        merged: deltas merged into the weights, in merge order (`handle/merging.py`).
        changed: names of the tensors that merges have changed.
        serial: tells ledgers on parts of a model apart.
        route: what sends rows of a batch through deltas of their own while a block lasts (`handle/routing.py`).
        ran: the serial of the newest delta when the backbone last ran as a whole, or was traced.
        trained: the same for runs in training.
        told: the same for the last check of uncalled layers.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    only_trainable: bool = False
    filter_asked: bool = False
    selected: bool = False
    merged: list[str] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    serial: int = field(default_factory=lambda: next(_SERIALS))
    route: Any = None
    ran: int = 0
    trained: int = 0
    told: int = 0

    def replace(self, backbone: nn.Module, entry: Entry, values: Mapping[str, Tensor | None]) -> None:
        """Give an entry its own values of backbone tensors.

        Args:
            values: by tensor name; None to start from the current value of the entry, or else of the backbone.
        """
        for name, record in overrides_for(backbone, values).items():
            live = tensor_at(backbone, name)
            record.claim(entry.serial, values[name], live, attached=entry.attached)
            entry.replaced[name] = full_shape(live)

    def release(self, backbone: nn.Module, entry: Entry, names: Collection[str]) -> None:
        """Forget those of an entry's values that equal the backbone's own."""
        for name in sorted(names):  # sorted: all processes of a sharded backbone gather in one order
            record, live = _record(backbone, entry, name), tensor_at(backbone, name)
            value = full_tensor(record.value(entry.serial, live))
            if torch.equal(
                value, full_tensor(record.own(live)).to(value)
            ):  # the backbone may have been moved or cast since
                record.drop(entry.serial, live)
                del entry.replaced[name]
        drop_empty(backbone)

    def switch(self, backbone: nn.Module, entry: Entry, on: bool) -> None:
        """Activate or deactivate an entry's values of backbone tensors."""
        entry.attached = on
        for name in sorted(entry.replaced):
            _record(backbone, entry, name).switch(entry.serial, on, tensor_at(backbone, name))

    def forget(self, backbone: nn.Module, entry: Entry) -> None:
        """Remove a detached entry, and everything kept only for it."""
        del self.entries[entry.name]
        for name in entry.replaced:
            _record(backbone, entry, name).drop(entry.serial, tensor_at(backbone, name))
        drop_empty(backbone)
        if not self.entries:
            restore_trainable(backbone, self.serial)
            drop_ledger(backbone)


def check_tensors(backbone: nn.Module, entry: Entry) -> None:
    """Raise if the backbone tensors that an entry replaced have been exchanged.

    Raises:
        TargetError: one is another tensor or has another shape.
    """
    for name, shape in entry.replaced.items():
        _record(backbone, entry, name)
        if full_shape(tensor_at(backbone, name)) != shape:
            raise _exchange_error(backbone, entry, name)


def value_of(backbone: nn.Module, entry: Entry, name: str) -> Tensor:
    """Return an entry's value of a backbone tensor."""
    return _record(backbone, entry, name).value(entry.serial, tensor_at(backbone, name))


def _record(backbone: nn.Module, entry: Entry, name: str) -> Override:
    record = override_of(backbone, name)
    if record is None or entry.serial not in record.values:
        raise _exchange_error(backbone, entry, name)
    return record


def _exchange_error(backbone: nn.Module, entry: Entry, name: str) -> TargetError:
    shape, recorded_shape = list(full_shape(tensor_at(backbone, name))), list(entry.replaced[name])
    how = f"is {shape}, and was {recorded_shape} when" if shape != recorded_shape else "was replaced after"
    return TargetError(
        f"{name} {how} the delta {entry.name!r} began to train it. Resize or replace it before freeze_module."
    )


def names_on(modules: Mapping[str, nn.Module]) -> set[str]:
    """Return the names of all deltas on a backbone, on its parts, and at its modules for a model around it.

    Args:
        modules: the backbone's modules by name.
    """
    names: set[str] = set()
    for module in modules.values():
        if ATTRIBUTE in module.__dict__:
            names |= module.__dict__[ATTRIBUTE].entries.keys()
        if CHILD in module._modules:
            names |= site_of(module).slots.keys()
    return names


def free_name(modules: Mapping[str, nn.Module], base_name: str) -> str:
    """Return `base_name`, with a number appended if a delta on the backbone with these modules already has that name."""
    taken = names_on(modules)
    names = (f"{base_name}_{number}" if number else base_name for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def ledgers_in(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, Ledger]]:
    """Yield the ledgers of a backbone and of its parts with their own deltas, with the name of each part and the part.

    Args:
        modules: the backbone's modules by name.
    """
    for address, module in modules.items():
        ledger = module.__dict__.get(ATTRIBUTE)
        if isinstance(ledger, Ledger):
            yield address, module, ledger


def entries_of(backbone: nn.Module) -> list[Entry]:
    """Return the deltas on a backbone in the order they were added; the backbone is only read."""
    ledger = backbone.__dict__.get(ATTRIBUTE)
    return list(ledger.entries.values()) if isinstance(ledger, Ledger) else []


def ledger_of(backbone: nn.Module) -> Ledger:
    """Return the ledger of a backbone, creating it if there is none."""
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger):
        ledger = Ledger()
        setattr(backbone, ATTRIBUTE, ledger)
        backbone.register_state_dict_post_hook(_keep_trainable)  # type: ignore[no-untyped-call]
        backbone.register_load_state_dict_post_hook(_miss_only_trainable)  # type: ignore[no-untyped-call]
        backbone.register_forward_pre_hook(_before_run)
    return ledger


def ledger_holding(backbone: nn.Module, entry: Entry) -> Ledger:
    """Return the ledger that contains an entry.

    Raises:
        TargetError: the entry has been removed.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger) or ledger.entries.get(entry.name) is not entry:
        msg = f"{entry.name!r} was removed from this {type(backbone).__name__}. Load or make it again."
        raise TargetError(msg)
    return ledger


def drop_ledger(backbone: nn.Module) -> None:
    """Remove every trace of deltas from a backbone that no longer carries any."""
    if ATTRIBUTE not in backbone.__dict__:
        return
    delattr(backbone, ATTRIBUTE)
    for hooks, ledger_hook in (
        (backbone._state_dict_hooks, _keep_trainable),
        (backbone._load_state_dict_post_hooks, _miss_only_trainable),
        (backbone._forward_pre_hooks, _before_run),
    ):
        for key in [key for key, hook in hooks.items() if hook is ledger_hook]:
            del hooks[key]


def has_run(backbone: nn.Module, name: str, serial: int | None = None) -> bool:
    """Whether a backbone, or the part of it that carries a delta, has run as a whole since the delta was added.

    One compiled in place counts as run once any of its class was traced, since it may run a graph traced for another.
    """
    return any(
        ledger.ran >= entry.serial or (part._compiled_call_impl is not None and type(part) in _TRACED)
        for _, part, ledger in ledgers_in(modules_by_name(backbone))
        for entry in ledger.entries.values()
        if entry.name == name and serial in (None, entry.serial)
    )


def uncalled(backbone: nn.Module, delta: str, addresses: Iterable[str], serial: int | None = None) -> list[str]:
    """Return the modules at which a delta has never acted although the backbone ran, such as bypassed layers.

    Layers whose names differ only in numbers count as one: an expert that received no token, or a dropped layer, is not
    reported if another layer of its kind was called. So do those that share a weight, for a delta that acts on them as one. Neither
    is a layer that a graph of torch.compile may have called.

    Args:
        delta: the delta's name.
        addresses: the names of its modules.
        serial: of its entry, where a delta on a part of the backbone may have the same name; None for any of that name.
    """
    targets: dict[str, nn.Module] = {}
    kinds: dict[str, Hashable] = {}
    for address in addresses:
        target = module_at(backbone, address)
        insertion = site_of(target).slots[delta]
        if any(acts_in(insertion, method) for method in ("before", "after", "substitute")):
            targets[address] = target
            kinds[address] = id(target._parameters.get("weight")) if insertion.acts_as_one else _kind(address)
    if not (has_run(backbone, delta, serial) or any(site_of(target).called for target in targets.values())):
        return []
    called_kinds = {kinds[address] for address, target in targets.items() if was_called(target)}
    return [address for address in targets if kinds[address] not in called_kinds]


def warn_of_uncalled(backbone: nn.Module, entry: Entry) -> None:
    """Warn about modules where a delta has never acted, so that nothing was trained there."""
    if silent := uncalled(backbone, entry.name, entry.insertions, entry.serial):
        LOGGER.warning(
            "%r has never acted on %s%s: the backbone ran without calling it, so nothing was trained there. Leave such modules "
            "out (exclude_modules) unless other inputs reach them.",
            entry.name,
            ", ".join(silent[:3]),
            f" and {len(silent) - 3} more" if len(silent) > 3 else "",
        )


def _kind(address: str) -> str:
    return _NUMBER.sub("*", address)


def _before_run(module: nn.Module, args: Any) -> None:
    if is_dynamo_compiling():
        while_tracing(_note_traced, module)
    else:
        _note_run(module)
        if module.training and torch.is_grad_enabled():
            _check_calls(module)


def _check_calls(module: nn.Module) -> None:
    """Warn, at the second run in training, of layers that were not called until then: they are not trained."""
    ledger = module.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger) or ledger.told == ledger.ran:
        return
    if ledger.trained != ledger.ran:  # the first run
        ledger.trained = ledger.ran
        return
    ledger.told = ledger.ran
    for entry in ledger.entries.values():
        if entry.attached:
            warn_of_uncalled(module, entry)


def _note_traced(module: nn.Module | None) -> None:
    if module is not None:
        _TRACED.add(type(module))
        _note_run(module)


def _note_run(module: nn.Module) -> None:
    ledger = module.__dict__.get(ATTRIBUTE)
    # The sites of a replica are copies, which note for themselves alone that they were called.
    if isinstance(ledger, Ledger) and ledger.entries and "_is_replica" not in module.__dict__:
        ledger.ran = next(reversed(ledger.entries.values())).serial


# Top-level, so that a backbone with it copies and pickles; it touches only keys under its own prefix, so that a
# wrapper around the backbone keeps its own tensors.
def _keep_trainable(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    ledger = module.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger) or not ledger.only_trainable:
        return
    kept_names = _kept_names(module)
    for key in [
        key for key in state_dict if key.startswith(prefix) and plain_name(key[len(prefix) :]) not in kept_names
    ]:
        del state_dict[key]


# The counterpart: a state dict without any frozen tensor counts as complete, e.g. for a Trainer that resumes. One with
# some frozen tensors still counts as a whole model's, so the others are reported as missing.
def _miss_only_trainable(module: nn.Module, keys: Any) -> None:
    ledger = module.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger) or not ledger.only_trainable:
        return
    kept_names, missing = _kept_names(module), set(keys.missing_keys)
    frozen = [name for name, _ in module.named_parameters(remove_duplicate=False) if plain_name(name) not in kept_names]
    buffers = [name for name, _ in module.named_buffers() if plain_name(name) not in kept_names]
    for first in [key for key in missing if frozen and key.endswith(frozen[0])]:
        prefix = first.removesuffix(frozen[0])  # of the backbone inside a wrapper, which hooks do not receive
        if missing.issuperset(prefix + name for name in frozen):
            missing.difference_update(prefix + name for name in (*frozen, *buffers))
            keys.missing_keys[:] = [key for key in keys.missing_keys if key in missing]
            return


def _kept_names(module: nn.Module) -> set[str]:
    names = {name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    names |= {name for name, _ in module.named_buffers() if is_delta_name(name)}
    acting = {name for name, record in overrides(modules_by_name(module)) if record.owner is not None}
    # `acting` includes running statistics, which change without a gradient.
    return {plain_name(name) for name in names} | acting
