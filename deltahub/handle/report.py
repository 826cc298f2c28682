"""Reports on a delta: its share of the model's parameters, and the modules where it does not act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from deltahub.engine.drawing.visualize import Visualization
from deltahub.engine.modules import module_at
from deltahub.engine.site import is_delta_name


def count(model: nn.Module) -> dict[str, float]:
    """Count parameters, each tensor once, and measure CUDA memory in GB."""
    named = list(model.named_parameters())
    total = sum(p.numel() for _, p in named)
    trained = sum(p.numel() for _, p in named if p.requires_grad)
    delta = sum(p.numel() for name, p in named if is_delta_name(name))
    gigabyte = float(1 << 30)
    cuda = torch.cuda.is_available()
    return {
        "total_parameters": total,
        "trainable_parameters": trained,
        "trainable_ratio": trained / total if total else 0.0,
        "delta_parameters": delta,
        "delta_ratio": delta / total if total else 0.0,
        "cudamem": torch.cuda.memory_allocated() / gigabyte if cuda else 0.0,
        "maxcudamem": torch.cuda.max_memory_allocated() / gigabyte if cuda else 0.0,
    }


@torch.no_grad()
def not_called(
    model: nn.Module, addresses: Iterable[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[str]:
    """Return the modules of a model, by name, that a call of the model does not call."""
    silent = dict.fromkeys(addresses)
    handles = []
    for address in silent.copy():

        def mark(module: nn.Module, inputs: Any, address: str = address) -> None:
            silent.pop(address, None)

        handles.append(module_at(model, address).register_forward_pre_hook(mark))
    try:
        model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return list(silent)


def print_report(model: nn.Module, delta: bool, trainable: bool, tree: bool, memory: bool) -> None:
    """Print the tree of a model and its statistics."""
    from rich.console import Console

    if tree:
        Visualization(model).structure_graph()
    stat = count(model)
    total = stat["total_parameters"]
    console = Console(highlight=False)
    if trainable:
        share = f"{stat['trainable_ratio']:.6%}"
        console.print(f"Trainable Ratio: {stat['trainable_parameters']:.0f}/{total:.0f}={share}")
    if delta:
        console.print(f"Delta Parameter Ratio: {stat['delta_parameters']:.0f}/{total:.0f}={stat['delta_ratio']:.6%}")
    if memory:
        console.print(f"Static Memory {stat['cudamem']:.2f} GB, Max Memory {stat['maxcudamem']:.2f} GB")
