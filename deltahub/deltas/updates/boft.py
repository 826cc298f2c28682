"""BOFT: the inputs of a layer are rotated in blocks, and each row of the weight is scaled.

    W' = s * (W R^T)        R: block-diagonal, blocks (b, b) = (I - S)(I + S)^-1 with S = (Q - Q^T) / 2, Q = 0 at the start
                            s: (n_out, 1), 1 at the start

Only one factor of the butterfly, as PEFT has it without its CUDA kernel.

Liu et al. 2023, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", https://arxiv.org/abs/2311.06243
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.oft import cayley
from deltahub.deltas.updates.update import WeightUpdate, divided


class ScaledBlockRotation(WeightUpdate):
    """BOFT, see above."""

    method = "boft"
    defaults: ClassVar[Mapping[str, Any]] = {"block_size": 4}
    reads_weight = True

    def create(self, like: Tensor) -> None:
        """Create Q for each block, ``(1, blocks, b, b)``, and the scales, ``(n_out, 1)``."""
        size = self["block_size"]
        self.boft_R = nn.Parameter(like.new_zeros(1, divided(self.n_in, size, "blocks"), size, size))
        self.boft_s = nn.Parameter(like.new_ones(self.n_out, 1))

    def update(self, weight: Tensor) -> Tensor:
        """Rotate the columns of W, and scale its rows."""
        free = self.boft_R[0].to(weight.dtype)
        blocks = weight.view(len(weight), -1, self["block_size"])
        rotated = torch.einsum("onb,nib->oni", blocks, cayley((free - free.mT) / 2)).flatten(1)
        return self.boft_s.to(weight.dtype) * rotated - weight
