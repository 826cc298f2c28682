"""HiRA: the weight times a low-rank matrix, element by element.

    dW = W * (B A)        A: (r, n_in), B: (n_out, r), B = 0 at the start

Huang et al. 2025, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models",
https://openreview.net/forum?id=TwJrTz9cRS
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate


class HadamardWithWeight(WeightUpdate):
    """HiRA, see above."""

    method = "hira"
    defaults: ClassVar[Mapping[str, Any]] = {"r": 32}
    reads_weight = True

    def create(self, like: Tensor) -> None:
        """Create A and B."""
        self.hira_A = nn.Parameter(like.new_empty(self["r"], self.n_in))
        nn.init.kaiming_uniform_(self.hira_A, a=math.sqrt(5))
        self.hira_B = nn.Parameter(like.new_zeros(self.n_out, self["r"]))

    def update(self, weight: Tensor) -> Tensor:
        """Multiply W by the product of the factors."""
        return weight * (self.hira_B @ self.hira_A).to(weight.dtype)
