"""Which parameters train."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import Tensor, nn

from deltahub.address import lies_within, nearest_names
from deltahub.engine.site import CHILD, is_delta_name, own_modules, own_parameters
from deltahub.engine.structure import MARK, StructureMap, marked
from deltahub.errors import AddressError, NoMatchError


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
