"""The budget of AdaLoRA: how many directions all modules share at a step, and which ones they keep.

    I = |p dL/dp|,  m <- b1 m + (1 - b1) I,  u <- b2 u + (1 - b2) |I - m|       of each parameter p
    score of a direction i = m u of E_i + mean of m u over A_i + mean of m u over B_i

    budget(t) = b_0  until tinit,  b_T + (b_0 - b_T) (1 - (t - tinit) / (T - tinit - tfinal))^3  until T - tfinal,  then b_T

Zhang et al. 2023, section 3, https://arxiv.org/abs/2303.10512
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from deltahub.errors import ConfigError


class Directions(Protocol):
    """The update of one module, as the budget sees it."""

    lora_A: nn.Parameter  # noqa: N815
    lora_B: nn.Parameter  # noqa: N815
    lora_E: nn.Parameter  # noqa: N815
    averages: dict[str, tuple[Tensor, Tensor]]

    @property
    def kept(self) -> Tensor:
        """Which directions are within the budget, ``(r,)``."""

    def mask(self) -> None:
        """Set the singular values of all other directions to zero."""


@dataclass(frozen=True)
class Schedule:
    """When the budget shrinks.

    Attributes:
        total: number of training steps.
        start: steps before it shrinks.
        final: steps at the end with the final budget.
        every: steps from one allocation to the next.
    """

    total: int
    start: int
    final: int
    every: int

    @property
    def end(self) -> int:
        """The step from which on the ranks are final."""
        return self.total - self.final

    def budget(self, step: int, first: int, last: int) -> int:
        """Return the number of directions at a step.

        Args:
            first: the number at the start.
            last: the number at the end.
        """
        if step <= self.start:
            return first
        if step >= self.end:
            return last
        left = 1 - (step - self.start) / (self.end - self.start)
        return int((first - last) * left**3 + last)

    def allocates(self, step: int) -> bool:
        """Return whether directions are chosen at a step before the end."""
        return step > self.start and step % self.every == 0


@torch.no_grad()
def observe(updates: Sequence[Directions], beta1: float, beta2: float) -> None:
    """Smooth the importance of every parameter by its present gradient.

    Raises:
        ConfigError: a parameter has no gradient, or is a part of one that is spread over several processes.
    """
    for update in updates:
        for name in ("lora_A", "lora_B", "lora_E"):
            parameter: nn.Parameter = getattr(update, name)
            if parameter.grad is None:
                msg = "A parameter of AdaLoRA has no gradient. Call update_budget after backward() and before zero_grad(), with the delta unfrozen."
                raise ConfigError(msg)
            if hasattr(parameter, "full_tensor"):
                msg = "AdaLoRA cannot compare directions whose parameters are sharded. Train it with DDP, or a LoRA with FSDP."
                raise ConfigError(msg)
            importance = (parameter * parameter.grad).abs()
            mean, spread = update.averages.get(name, (torch.zeros_like(importance), torch.zeros_like(importance)))
            mean = beta1 * mean + (1 - beta1) * importance
            spread = beta2 * spread + (1 - beta2) * (importance - mean).abs()
            update.averages[name] = mean, spread


@torch.no_grad()
def allocate(updates: Sequence[Directions], budget: int) -> None:
    """Keep the most important directions of all modules, and set the singular values of the others to zero."""
    scores = [_scores(update) for update in updates]
    together = torch.cat([score.float().cpu() for score in scores])
    kept = torch.zeros(len(together), dtype=torch.bool)
    kept[together.topk(min(budget, len(together))).indices] = True
    for update, own in zip(updates, torch.split(kept, [len(score) for score in scores]), strict=True):
        update.kept.copy_(own)
        update.mask()


def forget(updates: Sequence[Directions]) -> None:
    """Drop the averages, once the ranks are final."""
    for update in updates:
        update.averages.clear()


def _scores(update: Directions) -> Tensor:
    """Return the importance of each direction of a module, ``(r,)``."""
    products = {name: mean * spread for name, (mean, spread) in update.averages.items()}
    return products["lora_E"] + products["lora_A"].mean(1) + products["lora_B"].mean(0)
