"""Parameter groups for optimisers of torch: LoRA+ gives the matrices that start at zero a higher learning rate.

    lr_B = ratio * lr,    lr_A = lr

With one learning rate for both, B, whose input has only r values, moves too slowly in wide models.

Hayou et al. 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", https://arxiv.org/abs/2402.12354
"""

from __future__ import annotations

from typing import Any

from torch import nn

from deltahub.engine.insertion import Insertion
from deltahub.engine.ledger import Entry, ledger_holding
from deltahub.engine.modules import modules_by_name, own_parameters
from deltahub.errors import ConfigError


def parameter_groups(
    backbone: nn.Module, entry: Entry, lr: float, ratio: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups: see `DeltaBase.parameter_groups`.

    Raises:
        ConfigError: a number is out of range, or nothing is trainable.
        TargetError: the delta was removed.
    """
    ledger_holding(backbone, entry)
    for name, value, least in (
        ("lr", lr, "more than 0"),
        ("ratio", ratio, "more than 0"),
        ("weight_decay", weight_decay, "at least 0"),
    ):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not (value > 0 or (value == 0 and "least" in least))
        ):
            msg = f"{name} must be a number of {least}, got {value!r}."
            raise ConfigError(msg)
    rates = _rates(backbone, entry, lr, ratio)
    if not rates:
        msg = f"Nothing of {entry.name!r} is trainable. Call freeze_module() before making an optimiser."
        raise ConfigError(msg)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter, rate in rates:
        groups.setdefault((rate, weight_decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def _rates(backbone: nn.Module, entry: Entry, lr: float, ratio: float) -> list[tuple[nn.Parameter, float]]:
    """Return every trainable parameter of a delta, its trained tensors of the backbone included, once, with its learning rate."""
    rates: dict[int, tuple[nn.Parameter, float]] = {}
    for insertion in entry.insertions.values():
        for module in insertion.modules():
            fast = module.fast_parameters if isinstance(module, Insertion) else frozenset()
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    rates.setdefault(id(parameter), (parameter, ratio * lr if key in fast else lr))
    for _, parameter in own_parameters(modules_by_name(backbone)):
        if parameter.requires_grad:
            rates.setdefault(id(parameter), (parameter, lr))
    return list(rates.values())
