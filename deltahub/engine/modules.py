"""The backbone's own modules and parameters by name, without those of deltas.

A part that torch.compile has wrapped keeps the name it had before.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping
from typing import cast

from torch import Tensor, nn

from deltahub.engine.site import COMPILED, Site, uncompiled


def modules_by_name(backbone: nn.Module) -> dict[str, nn.Module]:
    """Walk a backbone, and return it and all its modules by name, each once, parents first; those of deltas are not visited.

    The backbone itself has the name ``""``.
    """
    modules = {"": backbone}
    visited_ids = {id(backbone)}

    def walk(prefix: str, children: Mapping[str, nn.Module | None]) -> None:
        for key, child in children.items():
            if child is None or isinstance(child, Site):
                continue
            if COMPILED in child._modules:
                child = uncompiled(child)  # noqa: PLW2901
            if id(child) not in visited_ids:
                visited_ids.add(id(child))
                modules[prefix + key] = child
                if child._modules:
                    walk(f"{prefix}{key}.", child._modules)

    walk("", backbone._modules)
    return modules


def own_modules(backbone: nn.Module) -> ItemsView[str, nn.Module]:
    """Return the names and modules of `modules_by_name`, to iterate over."""
    return modules_by_name(backbone).items()


def own_parameters(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield a backbone's own parameters by name, each once, without those of deltas.

    Args:
        modules: the backbone's modules by name.
    """
    visited_ids: set[int] = set()
    for name, module in modules.items():
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in visited_ids:
                visited_ids.add(id(parameter))
                yield (f"{name}.{key}" if name else key), parameter


def module_at(backbone: nn.Module, address: str) -> nn.Module:
    """Return the module with a known real name; `get_submodule` checks each step and costs ten times as much."""
    module = backbone
    for part in address.split(".") if address else ():
        module = cast("nn.Module", module._modules[part])
        if COMPILED in module._modules:
            module = uncompiled(module)
    return module


def plain_name(name: str) -> str:
    """Remove the names of torch.compile's wrappers from a name in a backbone."""
    return ".".join(part for part in name.split(".") if part != COMPILED) if COMPILED in name else name


def running_statistics(
    backbone: nn.Module, prefix: str = "", modules: Mapping[str, nn.Module] | None = None
) -> dict[str, Tensor]:
    """Return the running statistics of batch norms: they change in training without a gradient, and are kept like a head.

    Args:
        prefix: only those whose names begin with it.
        modules: the backbone's modules by name, if they are known.
    """
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in (modules_by_name(backbone) if modules is None else modules).items()
        if isinstance(module, nn.modules.batchnorm._NormBase) and f"{name}.".startswith(prefix)
        for key, buffer in module.named_buffers(recurse=False)
    }
