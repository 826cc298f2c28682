"""Reports on a delta: its share of the model's parameters, and the modules where it does not act."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from deltahub.engine.drawing.visualize import Visualization
from deltahub.engine.modules import module_at
from deltahub.engine.site import is_delta_name

if TYPE_CHECKING:
    from deltahub.engine.insertion import Insertion


class ReportMixin:
    """The part of a delta model that reports statistics and tests whether the delta acts."""

    backbone_model: nn.Module

    if TYPE_CHECKING:

        @property
        def insertions(self) -> Mapping[str, Insertion]: ...  # noqa: D102

    def get_statistics(self, module: nn.Module | None = None) -> dict[str, float]:
        """Count parameters, compute shares of the total, and measure CUDA memory in GB.

        Returns:
            total_parameters, trainable_parameters, trainable_ratio, delta_parameters, delta_ratio (fractions of the
            total), cudamem and maxcudamem.
        """
        return count(module if module is not None else self.backbone_model)

    def log(
        self,
        module: nn.Module | None = None,
        delta_ratio: bool = True,
        trainable_ratio: bool = True,
        visualization: bool = True,
        cuda_memory: bool = True,
    ) -> None:
        """Print the backbone with its deltas as a tree, and its statistics."""
        root = module if module is not None else self.backbone_model
        report(root, delta_ratio, trainable_ratio, visualization, cuda_memory)

    def probe(self, *args: Any, **kwargs: Any) -> list[str]:
        """Call the backbone once and return the modules of this delta that were not called, where it cannot act.

        A module is bypassed when code reads its weights directly, as T5 does with `shared`.

        Args:
            args: positional arguments for the backbone.
            kwargs: keyword arguments, e.g. ``**tokenizer("one sentence", return_tensors="pt")``.

        Returns:
            Real module names; empty if the delta acts at each of its modules.
        """
        return not_called(self.backbone_model, self.insertions, args, kwargs)


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
