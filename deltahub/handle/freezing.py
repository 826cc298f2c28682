"""The choice of parameters that train."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from torch import nn

from deltahub.checkpoint.address import lies_within, nearest_names
from deltahub.engine.guards import refuse_merged, refuse_merged_tensors, refuse_routed
from deltahub.engine.layers import is_constant, training_fault
from deltahub.engine.ledger import Entry, ledger_holding
from deltahub.engine.modules import modules_by_name, own_modules, own_parameters, plain_name, running_statistics
from deltahub.engine.offloading import offloaded
from deltahub.engine.sharding import reshard
from deltahub.engine.site import CHILD, Site, delta_key, delta_of, uncompiled
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap, marked
from deltahub.engine.trainable import remember
from deltahub.errors import AddressError, ConfigError, NoMatchError


@dataclass(frozen=True)
class Selection:
    """The parameters that a freeze leaves trainable, found before anything changes.

    Attributes:
        parameters: every parameter to treat, by its name within the treated part.
        trainable_ids: ids of those to train.
        patterns: the addresses that match the delta or the backbone, which a checkpoint of the delta can keep.
    """

    parameters: Mapping[str, nn.Parameter]
    trainable_ids: frozenset[int]
    patterns: tuple[str, ...]

    def names(self, backbone: nn.Module) -> set[str]:
        """Return the names of the backbone's own parameters among those to train."""
        return {
            name for name, parameter in own_parameters(modules_by_name(backbone)) if id(parameter) in self.trainable_ids
        }

    def apply(self) -> None:
        """Make exactly the selected parameters trainable."""
        for parameter in self.parameters.values():
            numeric = parameter.is_floating_point() or parameter.is_complex()
            parameter.requires_grad_(id(parameter) in self.trainable_ids and numeric)


def select(backbone: nn.Module, module: nn.Module | None, exclude: Sequence[str], entry: Entry) -> Selection:
    """Find the parameters that stay trainable.

    Args:
        module: the part of the backbone to treat; None for the whole backbone.
        exclude: addresses; ``"deltas"`` means the delta's own parameters, ``"deltas.NAME"`` another delta's.
        entry: the delta; one of the same name on a part of the model is another delta.

    Raises:
        NoMatchError: a name matches nothing. Nothing was changed.
        ConfigError: a parameter is offloaded, or cannot be trained.
    """
    delta, prefix = entry.name, prefix_of(backbone, module)
    own_ids = {id(p) for insertion in entry.insertions.values() for p in insertion.parameters()}
    every = backbone.named_parameters(remove_duplicate=False)  # any name of a tied tensor can match
    plain = ((plain_name(name), parameter) for name, parameter in chain(every, _detached_parameters(backbone)))
    named = {name[len(prefix) :]: parameter for name, parameter in plain if name.startswith(prefix)}
    owners = {name: delta_of(name) for name in named}
    namesakes = {name for name, owner in owners.items() if owner == delta and id(named[name]) not in own_ids}
    layers = {id(p): layer for _, layer in own_modules(backbone) for p in layer._parameters.values()}
    constants = {n for n, p in named.items() if not owners[n] and is_constant(layers[id(p)], p)}
    structure = StructureMap.of(module if module is not None else backbone)
    trainable_names: set[str] = set()
    patterns = []
    for pattern in exclude:
        means = {delta, "", *(other for other in owners.values() if _is_address_of(pattern, other))}
        names = [name for name, owner in owners.items() if owner in means and name not in namesakes]
        matches = {n for n in names if owners[n]} if pattern == CHILD else _matching_names(pattern, names, structure)
        trainable_names |= (matches - constants) or matches  # what is named alone has to train, or is refused below
        if pattern == CHILD or any(owners[name] in (delta, "") for name in matches):
            patterns.append(re.sub(rf"\b{CHILD}\.{delta}\b", CHILD, pattern))  # valid under any name of the delta
    if offloaded_names := sorted(
        name
        for name in trainable_names
        if not owners[name] and named[name].is_meta and f"{prefix}{name}" in offloaded(backbone)
    ):
        msg = f"{offloaded_names[0]} is offloaded, so its gradients would be lost. Keep what trains on a device: see device_map of from_pretrained."
        raise ConfigError(msg)
    for name in sorted(trainable_names):
        if not owners[name] and (fault := training_fault(layers[id(named[name])], named[name])):
            msg = f"{prefix}{name} cannot be trained: {fault}. Name only what trains beside it, or put a delta on the layer."
            raise ConfigError(msg)
    trainable_ids = frozenset(id(named[name]) for name in trainable_names)
    return Selection(named, trainable_ids, tuple(dict.fromkeys(patterns)))


def _detached_parameters(backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of inactive insertions: one attached again later must not train unasked."""
    for address, module in own_modules(backbone):
        site = module._modules.get(CHILD)
        if isinstance(site, Site):
            for name in site.slots.keys() - site._modules.keys():
                for key, parameter in site.slots[name].named_parameters():
                    yield delta_key(address, f"{name}.{key}"), parameter


def _is_address_of(pattern: str, delta: str) -> bool:
    """Return whether an address names a delta: the address of a module does not mean other deltas inside it."""
    return bool(delta) and re.search(rf"\b{CHILD}\.{delta}\b", pattern.replace("\\", "")) is not None


def _matching_names(pattern: str, names: Collection[str], structure: StructureMap) -> set[str]:
    """Return the parameters that a pattern matches, directly or through a module around them; real names come first."""
    real = {name for name in names if MARK not in pattern and lies_within(name, (pattern,))}
    matches = real or {name for name in names if lies_within(structure.common_name(name), (pattern, marked(pattern)))}
    if not matches:
        modules = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
        raise NoMatchError(pattern, nearest_names(pattern, sorted(modules)), "It was to stay trainable.")
    return matches


def prefix_of(backbone: nn.Module, module: nn.Module | None) -> str:
    """Return the prefix of a module's parameter names inside the backbone: ``"encoder.layer.0."``.

    Raises:
        AddressError: the module is not part of the backbone.
    """
    if module is None or module is backbone:
        return ""
    for name, candidate in own_modules(backbone):
        if candidate is uncompiled(module):
            return f"{name}."
    msg = f"This {type(module).__name__} is not part of the backbone; pass one of its modules."
    raise AddressError(msg)


def freeze(
    backbone: nn.Module,
    entry: Entry,
    module: nn.Module | None,
    exclude: Sequence[str] | str | None,
    set_state_dict: bool,
) -> None:
    """Freeze everything except the named parameters: see `DeltaBase.freeze_module`.

    Raises:
        NoMatchError: a name matches nothing.
        AddressError: `module` is not part of the backbone.
        ConfigError: the delta is detached and more than deltas is to train, or a parameter cannot be trained.
        TargetError: the delta was removed.
        MergeError: deltas are merged.
        RouteError: a route is open.
    """
    ledger = ledger_holding(backbone, entry)  # raises if the delta was removed
    refuse_merged(backbone)
    refuse_routed(backbone)
    if isinstance(exclude, str):
        exclude = [exclude]
    names = tuple((entry.config.unfrozen_modules if exclude is None else exclude) or ())
    if not entry.attached and any(name != CHILD for name in names):
        msg = f"{entry.name!r} is detached, so what is trained of the backbone would not be its own. attach() it first."
        raise ConfigError(msg)
    prefix = prefix_of(backbone, module)
    selection = select(backbone, module, names, entry)
    kept_names = selection.names(backbone) | running_statistics(backbone, prefix).keys()
    refuse_merged_tensors(backbone, kept_names)
    reshard(backbone)
    remember(modules_by_name(backbone).values(), ledger.serial)
    selection.apply()
    stale = [name for name in entry.replaced if name.startswith(prefix) and name not in kept_names]
    ledger.release(backbone, entry, stale)
    ledger.replace(backbone, entry, dict.fromkeys(sorted(kept_names)))
    entry.config = replace(entry.config, unfrozen_modules=selection.patterns)
    ledger.selected, ledger.only_trainable, ledger.filter_asked = True, set_state_dict, set_state_dict
