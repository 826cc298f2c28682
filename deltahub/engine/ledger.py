"""The ledger: which deltas a backbone carries, kept on the backbone itself so that a copy carries its own.

A delta may also train some of the backbone's tensors, a classifier head say. The ledger keeps the value that each such
tensor had before, so that `detach()` gives back the original backbone, and the value that each delta has for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.config import DeltaConfig
from deltahub.engine.insertion import Insertion
from deltahub.engine.modules import module_at, own_parameters, plain_name
from deltahub.engine.sharding import assign, whole
from deltahub.engine.site import is_delta_name
from deltahub.errors import TargetError

ATTRIBUTE: Final = "_deltahub_ledger"


@dataclass
class Entry:
    """One delta on a backbone.

    Attributes:
        name: its name on this backbone, unique there.
        handle: the class of its handle, a DeltaBase.
        config: how it was made.
        insertions: real module name to insertion.
        replaced: backbone tensors that are this delta's own; None while its value is the one in the backbone.
        attached: whether it acts.
        parents: what it was made from, as `delta_config.json` says it.
    """

    name: str
    handle: type[Any]
    config: DeltaConfig
    insertions: dict[str, Insertion]
    replaced: dict[str, Tensor | None] = field(default_factory=dict)
    attached: bool = True
    parents: tuple[Mapping[str, str], ...] = ()


@dataclass
class Ledger:
    """All deltas on a backbone, in the order they were added.

    Attributes:
        entries: by name.
        base: value that each replaced backbone tensor had before the first delta replaced it.
        in_force: name of the delta whose value each of them has now; absent where it is the base value.
        only_trainable: whether `state_dict()` of the backbone leaves out what is frozen.
        filter_asked: whether `freeze_module` asked for that; it holds while a delta is attached.
        merged: deltas that are written into the weights, in the order that was done (`engine/merging.py`).
        originals: value that each tensor had before the first merge changed it.
        trainable: backbone parameters that trained before the first delta froze any; None if none has.
        route: what sends rows of a batch through deltas of their own while a block lasts (`engine/routing/route.py`).
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    base: dict[str, Tensor] = field(default_factory=dict)
    in_force: dict[str, str] = field(default_factory=dict)
    only_trainable: bool = False
    filter_asked: bool = False
    merged: list[str] = field(default_factory=list)
    originals: dict[str, Tensor] = field(default_factory=dict)
    trainable: frozenset[str] | None = None
    route: Any = None

    def free_name(self, wanted: str) -> str:
        """`wanted`, or `wanted` and a number if a delta has that name already."""
        names = (f"{wanted}_{number}" if number else wanted for number in range(len(self.entries) + 1))
        return next(name for name in names if name not in self.entries)

    def replace(self, backbone: nn.Module, entry: Entry, values: dict[str, Tensor | None]) -> None:
        """Make backbone tensors an entry's own.

        Args:
            values: by tensor name; None to go on from the value that the backbone has now.
        """
        for name, value in values.items():
            live = tensor_called(backbone, name).detach()
            self.base.setdefault(name, live.clone())
            if entry.name != self.in_force.get(name):
                entry.replaced[name] = (live if value is None else value).clone()
            elif value is not None:
                assign(live, value)
        self.settle(backbone)

    def release(self, backbone: nn.Module, entry: Entry, names: Collection[str]) -> None:
        """Forget replaced tensors of an entry that have the backbone's own value."""
        for name in names:
            value = whole(self.value(backbone, entry, name))
            if torch.equal(value, whole(self.base[name]).to(value)):  # the backbone may have been moved or cast since
                del entry.replaced[name]
                if self.in_force.get(name) == entry.name:
                    del self.in_force[name]
                if not any(name in other.replaced for other in self.entries.values()):
                    del self.base[name]
        self.settle(backbone)

    @torch.no_grad()
    def settle(self, backbone: nn.Module) -> None:
        """Give each replaced tensor the value of the last attached delta that has one, else the backbone's own."""
        for name, base in self.base.items():
            owners = [entry for entry in self.entries.values() if entry.attached and name in entry.replaced]
            owner = owners[-1].name if owners else None
            current = self.in_force.get(name)
            if owner == current:
                continue
            live = tensor_called(backbone, name)
            if current is not None:
                self.entries[current].replaced[name] = live.detach().clone()
            value = self.entries[owner].replaced[name] if owner else base
            assert value is not None  # None stands for the value in force, and that is another's
            assign(live, value)
            if owner:
                self.entries[owner].replaced[name] = None
                self.in_force[name] = owner
            else:
                del self.in_force[name]

    def remember_trainable(self, names: Collection[str]) -> None:
        """Keep which backbone parameters train, before a delta freezes any for the first time."""
        if self.trainable is None:
            self.trainable = frozenset(names)

    def forget(self, backbone: nn.Module, entry: Entry) -> None:
        """Drop a detached entry, and what was kept only for it."""
        del self.entries[entry.name]
        for name in entry.replaced:
            if not any(name in other.replaced for other in self.entries.values()):
                del self.base[name]
        if self.entries:
            return
        if self.trainable is not None:
            for name, parameter in own_parameters(backbone):
                parameter.requires_grad_(name in self.trainable)
        drop_ledger(backbone)

    def check_shapes(self, backbone: nn.Module) -> None:
        """Refuse a backbone whose tensors are no longer those that were kept.

        Raises:
            TargetError: one has another shape.
        """
        for name, base in self.base.items():
            found = list(tensor_called(backbone, name).shape)
            if found != list(base.shape):
                msg = (
                    f"{name} is {found}, and was {list(base.shape)} when a delta began to train it. "
                    "Resize or replace it before freeze_module."
                )
                raise TargetError(msg)

    def value(self, backbone: nn.Module, entry: Entry, name: str) -> Tensor:
        """An entry's value of a backbone tensor."""
        value = entry.replaced[name]
        return tensor_called(backbone, name).detach() if value is None else value


def entries_of(backbone: nn.Module) -> list[Entry]:
    """The deltas on a backbone in the order they were added; the backbone is only read."""
    ledger = backbone.__dict__.get(ATTRIBUTE)
    return list(ledger.entries.values()) if isinstance(ledger, Ledger) else []


def original_values(backbone: nn.Module) -> Mapping[str, Tensor]:
    """The backbone's own values of the tensors that deltas have replaced or changed, by name; it is only read."""
    ledger = backbone.__dict__.get(ATTRIBUTE)
    return {**ledger.base, **ledger.originals} if isinstance(ledger, Ledger) else {}


def ledger_of(backbone: nn.Module) -> Ledger:
    """The ledger of a backbone, made when there is none."""
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger):
        ledger = Ledger()
        setattr(backbone, ATTRIBUTE, ledger)
        backbone.register_state_dict_post_hook(_keep_trainable)  # type: ignore[no-untyped-call]
        backbone.register_load_state_dict_post_hook(_miss_only_trainable)  # type: ignore[no-untyped-call]
    return ledger


def ledger_holding(backbone: nn.Module, entry: Entry) -> Ledger:
    """The ledger that an entry stands in.

    Raises:
        TargetError: it stands in none any more.
    """
    ledger = backbone.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger) or ledger.entries.get(entry.name) is not entry:
        msg = f"{entry.name!r} was removed from this {type(backbone).__name__}. Load or make it again."
        raise TargetError(msg)
    return ledger


def drop_ledger(backbone: nn.Module) -> None:
    """Leave no trace of deltas on a backbone that carries none any more."""
    if ATTRIBUTE not in backbone.__dict__:
        return
    delattr(backbone, ATTRIBUTE)
    for hooks, own in (
        (backbone._state_dict_hooks, _keep_trainable),
        (backbone._load_state_dict_post_hooks, _miss_only_trainable),
    ):
        for key in [key for key, hook in hooks.items() if hook is own]:
            del hooks[key]


def tensor_called(backbone: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name."""
    prefix, _, key = name.rpartition(".")
    tensor = getattr(module_at(backbone, prefix), key)
    assert isinstance(tensor, Tensor)
    return tensor


# Top-level, so that a backbone with it copies and pickles; it touches only keys under its own prefix, so that a
# wrapper around the backbone keeps its own tensors.
def _keep_trainable(module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    ledger = module.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger) or not ledger.only_trainable:
        return
    kept = _kept_names(module, ledger)
    for key in [key for key in state_dict if key.startswith(prefix) and plain_name(key[len(prefix) :]) not in kept]:
        del state_dict[key]


# The other half: a state dict without anything that is frozen is whole, for a Trainer that resumes, say. One with some
# of it is still taken for a whole model's, and what it lacks is missed.
def _miss_only_trainable(module: nn.Module, keys: Any) -> None:
    ledger = module.__dict__.get(ATTRIBUTE)
    if not isinstance(ledger, Ledger) or not ledger.only_trainable:
        return
    kept, missing = _kept_names(module, ledger), set(keys.missing_keys)
    frozen = [name for name, _ in module.named_parameters(remove_duplicate=False) if plain_name(name) not in kept]
    buffers = [name for name, _ in module.named_buffers() if plain_name(name) not in kept]
    for first in [key for key in missing if frozen and key.endswith(frozen[0])]:
        prefix = first.removesuffix(frozen[0])  # of the backbone inside a wrapper, which no hook is told
        if missing.issuperset(prefix + name for name in frozen):
            missing.difference_update(prefix + name for name in (*frozen, *buffers))
            keys.missing_keys[:] = [key for key in keys.missing_keys if key in missing]
            return


def _kept_names(module: nn.Module, ledger: Ledger) -> set[str]:
    kept = {name for name, parameter in module.named_parameters(remove_duplicate=False) if parameter.requires_grad}
    kept |= {name for name, _ in module.named_buffers() if is_delta_name(name)}
    return {
        plain_name(name) for name in kept
    } | ledger.in_force.keys()  # running statistics too, which train without a gradient
