"""OFT: the inputs of a layer are rotated in blocks.

    W' = W R^T        R: block-diagonal, blocks (b, b) = (I - S)(I + S)^-1 with S skew-symmetric, 0 at the start

The inverse is exact, or the first ``neumann_terms`` terms of its series: I + 2 S + 2 S^2 + ... + S^k. ``block_share`` uses one block for all.

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", https://arxiv.org/abs/2306.07280
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate, divided


class BlockRotation(WeightUpdate):
    """OFT, see above; S is kept as the values above its diagonal."""

    method = "oft"
    defaults: ClassVar[Mapping[str, Any]] = {"block_size": 32, "block_share": False, "neumann_terms": 0}
    reads_weight = True

    def create(self, like: Tensor) -> None:
        """Create S for each block, ``(blocks, b (b - 1) / 2)``."""
        size = self["block_size"]
        blocks = 1 if self["block_share"] else divided(self.n_in, size, "blocks")
        self.oft_R = nn.Parameter(like.new_zeros(blocks, size * (size - 1) // 2))

    def update(self, weight: Tensor) -> Tensor:
        """Rotate the columns of W."""
        blocks = weight.view(len(weight), -1, self["block_size"])
        rotation = self._rotation(weight.dtype).expand(blocks.shape[1], -1, -1)
        return torch.einsum("onb,nib->oni", blocks, rotation).flatten(1) - weight

    def _rotation(self, dtype: torch.dtype) -> Tensor:
        """Return the blocks of R, ``(blocks, b, b)``."""
        skew = skew_symmetric(self.oft_R.to(dtype), self["block_size"])
        terms = self["neumann_terms"]
        if not terms:
            return cayley(skew)
        power = torch.eye(self["block_size"], dtype=dtype, device=skew.device).expand_as(skew)
        series = power
        for term in range(1, terms):
            power = power @ skew
            last = term == terms - 1 and terms > 2  # the series of PEFT halves its last term
            series = series + (1.0 if last else 2.0) * power
        return series


def skew_symmetric(values: Tensor, size: int) -> Tensor:
    """Return skew-symmetric matrices, ``(..., size, size)``, with the given values above the diagonal, row by row."""
    rows, columns = torch.triu_indices(size, size, 1, device=values.device)
    upper = values.new_zeros(*values.shape[:-1], size, size)
    upper[..., rows, columns] = values
    return upper - upper.mT


def cayley(skew: Tensor) -> Tensor:
    """Return the rotations (I - S)(I + S)^-1 of skew-symmetric matrices."""
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    rotations: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
    return rotations
