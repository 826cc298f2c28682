"""The backbone's own modules and parameters by name, without those of deltas.

A part that torch.compile has wrapped keeps the name it had before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn

from deltahub.engine.site import Site, uncompiled


def own_modules(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the backbone and all its modules by name, each once; the modules of deltas are not even visited."""
    visited_ids: set[int] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in visited_ids:
            return
        visited_ids.add(id(module))
        yield name, module
        for key, child in module._modules.items():
            if child is not None and not isinstance(child, Site):
                yield from walk(f"{name}.{key}" if name else key, uncompiled(child))

    return walk("", backbone)


def own_parameters(backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the backbone's own parameters by name, each once, without those of deltas."""
    visited_ids: set[int] = set()
    for name, module in own_modules(backbone):
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in visited_ids:
                visited_ids.add(id(parameter))
                yield (f"{name}.{key}" if name else key), parameter


def module_at(backbone: nn.Module, address: str) -> nn.Module:
    """Return the module with a known real name; `get_submodule` checks each step and costs ten times as much."""
    module = backbone
    for part in address.split(".") if address else ():
        module = uncompiled(cast("nn.Module", module._modules[part]))
    return module


def plain_name(name: str) -> str:
    """Remove the names of torch.compile's wrappers from a name in a backbone."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name


def running_statistics(backbone: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return the running statistics of batch norms: they change in training without a gradient, and are kept like a head.

    Args:
        prefix: only those whose names begin with it.
    """
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in own_modules(backbone)
        if isinstance(module, nn.modules.batchnorm._NormBase) and f"{name}.".startswith(prefix)
        for key, buffer in module.named_buffers(recurse=False)
    }
