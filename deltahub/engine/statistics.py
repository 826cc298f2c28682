"""How many parameters a model has, trains and owes to deltas."""

from __future__ import annotations

import logging
from typing import Final

import torch
from torch import nn

from deltahub.engine.site import is_delta_name
from deltahub.engine.visualize import Visualization

LOGGER: Final = logging.getLogger("deltahub")


def count(model: nn.Module) -> dict[str, float]:
    """Numbers of parameters, each tensor once, and CUDA memory in GB."""
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


def report(model: nn.Module, delta: bool, trainable: bool, tree: bool, memory: bool) -> None:
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
