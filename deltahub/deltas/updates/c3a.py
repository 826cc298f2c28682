"""C3A: a weight update of circulant blocks.

    dW = 1 / n_in * blocks C_ij,    C_ij[p, q] = k_ij[(q - p) mod b]        k: (n_out / b, n_in / b, b), 0 at the start

Chen et al. 2024, "Parameter-Efficient Fine-Tuning via Circular Convolution", https://arxiv.org/abs/2407.19342
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate, divided


class CirculantBlocks(WeightUpdate):
    """C3A, see above."""

    method = "c3a"
    defaults: ClassVar[Mapping[str, Any]] = {"block_size": 256}

    def create(self, like: Tensor) -> None:
        """Create one row of each block."""
        size = self["block_size"]
        rows, columns = (divided(width, size, "blocks") for width in (self.n_out, self.n_in))
        self.c3a_kernel = nn.Parameter(like.new_zeros(rows, columns, size))

    def update(self, weight: Tensor) -> Tensor:
        """Write out the blocks."""
        size = self["block_size"]
        place = torch.arange(size, device=self.c3a_kernel.device)
        blocks = self.c3a_kernel[:, :, (place[None, :] - place[:, None]) % size]
        return blocks.permute(0, 2, 1, 3).reshape(self.n_out, self.n_in) / self.n_in
