"""LoKr: a Kronecker product, each factor whole or of low rank.

    dW = s (C kron D)        C: (a, c), D: (n_out / a, n_in / c); s = alpha / r

Each width is split into two factors as close to each other as possible, or into ``decompose_factor`` and the rest. C = C_a C_b of rank r
with ``decompose_both`` where r is less than half of its larger width; D = D_a D_b likewise, always. D_b, or D, is zero at the start.

Edalati et al. 2022, "KronA: Parameter Efficient Tuning with Kronecker Adapter", https://arxiv.org/abs/2212.10650
Yeh et al. 2024, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", https://arxiv.org/abs/2309.14859
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate
from deltahub.engine.shapes import split_width


class KroneckerProduct(WeightUpdate):
    """LoKr, see above."""

    method = "lokr"
    defaults: ClassVar[Mapping[str, Any]] = {
        "r": 8,
        "alpha": 8.0,
        "decompose_both": False,
        "decompose_factor": -1,
        "tucker": False,
    }

    def create(self, like: Tensor) -> None:
        """Create the factors, with names as in LyCORIS and PEFT."""
        rank, kernel = self["r"], self.shape[2:]
        (out_1, out_2), (in_1, in_2) = (split_width(width, self["decompose_factor"]) for width in self.shape[:2])
        if self["decompose_both"] and rank < max(out_1, in_1) / 2:
            self._factors(like, 1, (out_1, rank), (rank, in_1))
        else:
            self.lokr_w1 = nn.Parameter(like.new_empty(out_1, in_1))
            nn.init.kaiming_uniform_(self.lokr_w1, a=math.sqrt(5))
        if rank >= max(out_2, in_2) / 2:
            self.lokr_w2 = nn.Parameter(like.new_zeros(out_2, in_2, *kernel))
        elif self["tucker"]:
            self.lokr_t2 = nn.Parameter(like.new_empty(rank, rank, *kernel, *[1] * (2 - len(kernel))))
            nn.init.kaiming_uniform_(self.lokr_t2, a=math.sqrt(5))
            self._factors(like, 2, (rank, out_2), (rank, in_2))
        else:
            self._factors(like, 2, (out_2, rank), (rank, in_2 * math.prod(kernel)))

    def _factors(self, like: Tensor, number: int, up: tuple[int, int], down: tuple[int, int]) -> None:
        factors = nn.Parameter(like.new_zeros(up)), nn.Parameter(like.new_empty(down))
        nn.init.kaiming_uniform_(factors[1], a=math.sqrt(5))
        if number == 1:  # one zero factor is enough
            nn.init.kaiming_uniform_(factors[0], a=math.sqrt(5))
        for side, factor in zip("ab", factors, strict=True):
            setattr(self, f"lokr_w{number}_{side}", factor)

    def update(self, weight: Tensor) -> Tensor:
        """Multiply the two factors; D of a convolution holds the kernel's sizes in its columns."""
        first, second = self._factor(1), self._factor(2)
        kernel = math.prod(self.shape[2:])
        product = torch.kron(first[:, :, None].contiguous(), second.reshape(len(second), -1, kernel))
        scale: float = self["alpha"] / self["r"]
        return scale * product.flatten(1)

    def _factor(self, number: int) -> Tensor:
        name = f"lokr_w{number}"
        if name in self._parameters:
            return self.tensor(name)
        up, down = self.tensor(f"{name}_a"), self.tensor(f"{name}_b")
        if "lokr_t2" in self._parameters and number == 2:
            return torch.einsum("ijkl,ip,jr->prkl", self.lokr_t2, up, down)
        return up @ down
