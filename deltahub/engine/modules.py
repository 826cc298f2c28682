"""The backbone's own modules and parameters by name: what deltas have put into it is left out.

A part of it that torch.compile has wrapped has the name that it had before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from deltahub.engine.site import Site, uncompiled


def own_modules(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The backbone and every module inside it by name, each once, without those of deltas, which are not even looked at."""
    seen: set[int] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module
        for key, child in module._modules.items():
            if child is not None and not isinstance(child, Site):
                yield from walk(f"{name}.{key}" if name else key, uncompiled(child))

    return walk("", backbone)


def own_parameters(backbone: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The backbone's own parameters by name, each once, without those of deltas."""
    seen: set[int] = set()
    for name, module in own_modules(backbone):
        for key, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield (f"{name}.{key}" if name else key), parameter


def module_at(backbone: nn.Module, address: str) -> nn.Module:
    """A module by its real name, which is known to exist; `get_submodule` checks each step and costs ten times as much."""
    module = backbone
    for part in address.split(".") if address else ():
        module = uncompiled(cast("nn.Module", module._modules[part]))
    return module


def plain_name(name: str) -> str:
    """A name in a backbone without the wrappers that torch.compile puts around modules."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod") if "_orig_mod" in name else name
