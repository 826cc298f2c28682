"""OpenDelta's statistics of modules and optimizers (`opendelta.utils.inspect`)."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from deltahub.engine.site import is_delta_name
from deltahub.handle import report
from deltahub.log import LOGGER


def num_trainable_parameters(module: Any) -> int:
    """Count the trainable numbers in a module's parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def num_total_parameters(module: Any) -> int:
    """Count the numbers in a module's parameters."""
    return sum(p.numel() for p in module.parameters())


def num_delta_parameters(module: nn.Module) -> int:
    """Count the numbers in the parameters of deltas on a backbone."""
    return sum(p.numel() for name, p in module.named_parameters() if is_delta_name(name))


def inspect_module_statistics(module: nn.Module, verbose: bool = True) -> dict[str, float]:
    """Count parameters and measure CUDA memory as `DeltaBase.get_statistics` does; log it too if `verbose`."""
    statistics = report.count(module)
    if verbose:
        LOGGER.info("%s", statistics)
    return statistics


def inspect_optimizer_statistics(optimizer: Optimizer, verbose: bool = True) -> dict[str, dict[str, Any]]:
    """Count the parameters of each ``param_group_<number>``, and return them with the options of the group.

    The trainable_ratio is text, in percent. `verbose` logs the result too.
    """
    statistics = {}
    for number, group in enumerate(optimizer.param_groups):
        total = sum(p.numel() for p in group["params"])
        trainable = sum(p.numel() for p in group["params"] if p.requires_grad)
        ratio = f"{trainable / total * 100 if total else 0:.6f}%"
        counts = {"total_parameters": total, "trainable_parameters": trainable, "trainable_ratio": ratio}
        options = {key: value for key, value in group.items() if key != "params"}
        statistics[f"param_group_{number}"] = {**counts, **options}
    if verbose:
        LOGGER.info("optimizer info: %s", statistics)
    return statistics
