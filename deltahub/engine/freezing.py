"""Which parameters train."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltahub.address import lies_within, nearest_names
from deltahub.engine.guards import refuse_merged, refuse_routed
from deltahub.engine.modules import own_modules, own_parameters
from deltahub.engine.sharding import reshard
from deltahub.engine.site import CHILD, is_delta_name
from deltahub.engine.structure.maps import MARK
from deltahub.engine.structure.names import StructureMap, marked
from deltahub.errors import AddressError, ConfigError, NoMatchError

if TYPE_CHECKING:
    from deltahub.engine.ledger import Entry, Ledger


def freeze(backbone: nn.Module, module: nn.Module | None, exclude: Collection[str]) -> set[str]:
    """Make exactly the excluded parameters trainable.

    Args:
        module: the part of the backbone to treat; None for all of it.
        exclude: addresses; ``"deltas"`` stands for the parameters of deltas.

    Returns:
        The names, within the whole backbone, of backbone parameters that train now.

    Raises:
        NoMatchError: a name matches nothing. Nothing was changed.
    """
    prefix = prefix_of(backbone, module)
    every = backbone.named_parameters(remove_duplicate=False)  # a tied tensor can be meant by any of its names
    named = {name[len(prefix) :]: p for name, p in every if name.startswith(prefix)}
    structure = StructureMap.of(module if module is not None else backbone)
    kept = {name for name in named if CHILD in exclude and is_delta_name(name)}
    for pattern in exclude:
        if pattern != CHILD:
            kept |= _covered(pattern, named, structure)
    meant = {id(named[name]) for name in kept}
    for parameter in named.values():
        parameter.requires_grad_(id(parameter) in meant and (parameter.is_floating_point() or parameter.is_complex()))
    return {name for name, parameter in own_parameters(backbone) if id(parameter) in meant}


def _covered(pattern: str, names: Collection[str], structure: StructureMap) -> set[str]:
    """The parameters that a pattern means, itself or through a module around them; real names come first."""
    real = {name for name in names if MARK not in pattern and lies_within(name, (pattern,))}
    found = real or {name for name in names if lies_within(structure.common_name(name), (pattern, marked(pattern)))}
    if not found:
        modules = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
        raise NoMatchError(pattern, nearest_names(pattern, sorted(modules)), "It was to stay trainable.")
    return found


def trainable(backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The backbone's own parameters that require a gradient."""
    return ((name, parameter) for name, parameter in own_parameters(backbone) if parameter.requires_grad)


def trainable_names(backbone: nn.Module) -> set[str]:
    """Names of the backbone's own parameters that require a gradient."""
    return {name for name, _ in trainable(backbone)}


def running_statistics(backbone: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """What batch norms change in training though nothing of theirs is trainable: kept with the delta, as a head is.

    Args:
        prefix: only those whose names begin with it.
    """
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in own_modules(backbone)
        if isinstance(module, nn.modules.batchnorm._NormBase) and f"{name}.".startswith(prefix)
        for key, buffer in module.named_buffers(recurse=False)
    }


def prefix_of(backbone: nn.Module, module: nn.Module | None) -> str:
    """What the names of a module's parameters begin with inside the backbone: ``"encoder.layer.0."``.

    Raises:
        AddressError: the module is not part of the backbone.
    """
    if module is None or module is backbone:
        return ""
    for name, candidate in own_modules(backbone):
        if candidate is module:
            return f"{name}."
    msg = f"This {type(module).__name__} is not part of the backbone; pass one of its modules."
    raise AddressError(msg)


class FreezeMixin:
    """Choosing what trains along with a delta; the delta models inherit it."""

    backbone_model: nn.Module

    if TYPE_CHECKING:
        _entry: Entry

        @property
        def _ledger(self) -> Ledger: ...

    def freeze_module(
        self, module: nn.Module | None = None, exclude: Sequence[str] | None = None, set_state_dict: bool = True
    ) -> None:
        """Freeze all but what is named, and let `state_dict()` of the backbone hold only what is trainable.

        Args:
            module: freeze inside this module of the backbone only; names are then relative to it.
            exclude: addresses of what stays trainable, real or common; ``"deltas"`` stands for the parameters of
                deltas. By default the config's `unfrozen_modules`.
            set_state_dict: whether `state_dict()` of the backbone leaves out what is frozen.

        Raises:
            NoMatchError: a name matches nothing.
            ConfigError: the delta is detached, and more than deltas is to train.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        ledger = self._ledger  # or an error: the delta was removed
        refuse_merged(self.backbone_model)
        refuse_routed(self.backbone_model)
        names = tuple((self._entry.config.unfrozen_modules if exclude is None else exclude) or ())
        if not self._entry.attached and any(name != CHILD for name in names):
            msg = f"{self._entry.name!r} is detached, so what is trained of the backbone would not be its own. attach() it first."
            raise ConfigError(msg)
        prefix = prefix_of(self.backbone_model, module)
        before = trainable_names(self.backbone_model)
        reshard(self.backbone_model)
        kept = freeze(self.backbone_model, module, names)
        ledger.remember_trainable(before)
        kept |= running_statistics(self.backbone_model, prefix).keys()
        stale = [name for name in self._entry.replaced if name.startswith(prefix) and name not in kept]
        ledger.release(self.backbone_model, self._entry, stale)
        ledger.replace(self.backbone_model, self._entry, dict.fromkeys(sorted(kept)))
        self._entry.config = replace(self._entry.config, unfrozen_modules=names)
        ledger.only_trainable = ledger.filter_asked = set_state_dict
