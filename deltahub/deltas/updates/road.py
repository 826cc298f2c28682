"""RoAd: pairs of outputs are rotated and scaled.

    y' = c_1 * y + c_2 * rot(y),    rot(y)_1 = -y_2, rot(y)_2 = y_1        y: W x + b

Halves 1 and 2 of each group of outputs are paired. c_1 = alpha cos(theta), c_2 = alpha sin(theta); theta = 0 and alpha = 1 at the
start. Variant 1 has one theta and alpha for each pair, variant 2 one for each output, variant 4 one for each output and each of c_1, c_2.

Liao and Monz 2024, "3-in-1: 2D Rotary Adaptation for Efficient Finetuning, Efficient Batching and Composability",
https://arxiv.org/abs/2409.00119
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate, divided
from deltahub.engine.weights import linear_bias


class OutputRotation(WeightUpdate):
    """RoAd, see above."""

    method = "road"
    defaults: ClassVar[Mapping[str, Any]] = {"variant": 1, "group_size": 64}
    reads_weight = True

    def create(self, like: Tensor) -> None:
        """Create the angles and the scales, ``(variant n_out / 2,)`` each."""
        divided(self.n_out, self["group_size"], "groups")
        divided(self["group_size"], 2, "pairs")
        size = self.n_out * self["variant"] // 2
        self.road_theta = nn.Parameter(like.new_zeros(size))
        self.road_alpha = nn.Parameter(like.new_ones(size))

    def update(self, weight: Tensor) -> Tensor:
        """Rotate the rows of W."""
        return self._rotated(weight) - weight

    def shift(self, target: nn.Module) -> Tensor | None:
        """Rotate the bias."""
        bias = linear_bias(target)
        return None if bias is None else self._rotated(bias[:, None].to(self.road_theta.dtype))[:, 0] - bias

    def _rotated(self, rows: Tensor) -> Tensor:
        """Rotate rows, ``(n_out, width)``."""
        half = self["group_size"] // 2
        first, second = (factor.to(rows.dtype)[:, None] for factor in self._factors())
        upper, lower = rows.view(-1, 2, half, rows.shape[1]).unbind(1)
        turned = torch.stack((-lower, upper), dim=1).view(rows.shape)
        return first * rows + second * turned

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Return c_1 and c_2, ``(n_out,)`` each."""
        theta, alpha, group = self.tensor("road_theta"), self.tensor("road_alpha"), self["group_size"]
        if self["variant"] == 4:
            (theta_1, theta_2), (alpha_1, alpha_2) = (
                (part[:, 0].flatten(), part[:, 1].flatten())
                for part in (theta.view(-1, 2, group), alpha.view(-1, 2, group))
            )
            return alpha_1 * theta_1.cos(), alpha_2 * theta_2.sin()
        if self["variant"] == 1:
            theta, alpha = (part.view(-1, 1, group // 2).expand(-1, 2, -1).flatten() for part in (theta, alpha))
        return alpha * theta.cos(), alpha * theta.sin()
