"""HRA: the inputs of a layer are reflected r times.

    W' = W H_1 ... H_r,    H = I - 2 u u^T        u: (n_in,) of length 1, made from the columns of U: (n_in, r)

At the start the columns of U come in equal pairs, whose reflections cancel. ``orthogonal`` makes the columns orthogonal to each other
first, by the method of Gram and Schmidt.

Yuan et al. 2024, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation",
https://arxiv.org/abs/2405.17484
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate


class Reflections(WeightUpdate):
    """HRA, see above."""

    method = "hra"
    defaults: ClassVar[Mapping[str, Any]] = {"r": 8, "orthogonal": False}
    reads_weight = True

    def create(self, like: Tensor) -> None:
        """Create U, ``(n_in, r)``."""
        columns = like.new_empty(self.n_in, math.ceil(self["r"] / 2))
        nn.init.kaiming_uniform_(columns, a=math.sqrt(5))
        self.hra_u = nn.Parameter(columns.repeat_interleave(2, dim=1)[:, : self["r"]].contiguous())

    def update(self, weight: Tensor) -> Tensor:
        """Reflect W column by column of U, which takes products of W with vectors only."""
        directions = self.hra_u.to(weight.dtype)
        if self["orthogonal"]:
            basis: Tensor = torch.linalg.qr(directions).Q
            return -2 * (weight @ basis) @ basis.T
        reflected = weight
        for direction in (directions / directions.norm(dim=0)).T:
            reflected = reflected - 2 * torch.outer(reflected @ direction, direction)
        return reflected - weight
