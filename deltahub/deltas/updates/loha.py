"""LoHa: the Hadamard product of two low-rank matrices.

    dW = s (A_1 B_1) * (A_2 B_2)        A: (n_out, r), B: (r, n_in), A_2 = 0 at the start; s = alpha / r

On the kernel of a convolution, ``tucker`` keeps the kernel's sizes in a core T of its own: dW = s (T_1 x A_1 x B_1) * (T_2 x A_2 x B_2),
with T: (r, r, *kernel), A: (r, n_out), B: (r, n_in).

Hyeon-Woo et al. 2022, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
https://arxiv.org/abs/2108.06098
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate


class HadamardProduct(WeightUpdate):
    """LoHa, see above."""

    method = "loha"
    defaults: ClassVar[Mapping[str, Any]] = {"r": 8, "alpha": 8.0, "tucker": False}

    def create(self, like: Tensor) -> None:
        """Create the factors, with names as in LyCORIS and PEFT."""
        rank, (n_out, n_in) = self["r"], (self.n_out, self.n_in)
        for number in (1, 2):
            if self["tucker"]:
                core = nn.Parameter(like.new_empty(rank, rank, *self.shape[2:], *[1] * (4 - len(self.shape))))
                setattr(self, f"hada_t{number}", core)
                nn.init.normal_(core, std=0.1)
            sizes = ((rank, n_out), (rank, self.shape[1])) if self["tucker"] else ((n_out, rank), (rank, n_in))
            for side, size, std in zip("ab", sizes, (0.1 * (number == 1), 1.0 if number == 1 else 0.1), strict=True):
                factor = nn.Parameter(like.new_empty(size))
                setattr(self, f"hada_w{number}_{side}", factor)
                nn.init.normal_(factor, std=std)

    def update(self, weight: Tensor) -> Tensor:
        """Multiply the two products."""
        scale: float = self["alpha"] / self["r"]
        return scale * self._product(1) * self._product(2)

    def _product(self, number: int) -> Tensor:
        up, down = self.tensor(f"hada_w{number}_a"), self.tensor(f"hada_w{number}_b")
        if not self["tucker"]:
            return up @ down
        return torch.einsum("ijkl,jr,ip->prkl", self.tensor(f"hada_t{number}"), down, up).flatten(1)
