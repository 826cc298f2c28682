"""Updates of a few entries of the weight, or of its spectrum; the places are chosen at random and do not train.

    sparse      dW = s E                    E: (n_out, n_in), values v at n places and 0 elsewhere; v = 0 at the start
    fourierft   dW = s Re(IFFT2(E))
    waveft      dW = s IDWT2(E)             the wavelets of Haar: each 2 x 2 of dW from one entry in each quarter of E

Bhardwaj et al. 2024, SHiRA, "Sparse High Rank Adapters", https://arxiv.org/abs/2406.13175
Gao et al. 2024, "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform", https://arxiv.org/abs/2405.03003
Bilican et al. 2025, WaveFT, "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets", https://arxiv.org/abs/2505.12532
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate
from deltahub.errors import ConfigError


class SparseUpdate(WeightUpdate):
    """Values at single places of the weight."""

    method = "sparse"
    defaults: ClassVar[Mapping[str, Any]] = {"places": 1000, "scale": 1.0, "seed": 0}

    def create(self, like: Tensor) -> None:
        """Create the values, ``(places,)``, and draw the places: row times n_in plus column."""
        count, entries = self["places"], self.n_out * self.n_in
        if count > entries:
            msg = (
                f"{count} places are more than the {entries} entries of a weight {[self.n_out, self.n_in]}. Use fewer."
            )
            raise ConfigError(msg)
        drawn = torch.empty(count, dtype=torch.int64, device="meta")
        if not like.is_meta:  # else they are in the file
            drawn = torch.randperm(entries, generator=torch.Generator().manual_seed(self["seed"]))[:count].to(
                like.device
            )
        self.register_buffer("places", drawn)
        self.values = nn.Parameter(like.new_zeros(count))

    def entries(self) -> Tensor:
        """Return s E, ``(n_out, n_in)``."""
        values, scale = self.tensor("values"), float(self["scale"])
        flat = values.new_zeros(self.n_out * self.n_in).scatter(0, self.tensor("places"), values)
        return scale * flat.view(self.n_out, self.n_in)

    def update(self, weight: Tensor) -> Tensor:
        """Return the entries themselves."""
        return self.entries()


class FourierUpdate(SparseUpdate):
    """Values at single places of the spectrum of Fourier."""

    method = "fourierft"
    defaults: ClassVar[Mapping[str, Any]] = {"places": 1000, "scale": 150.0, "seed": 0}

    def update(self, weight: Tensor) -> Tensor:
        """Transform the entries; half precision is not transformed."""
        spectrum = self.entries()
        update: Tensor = torch.fft.ifft2(spectrum.to(torch.promote_types(spectrum.dtype, torch.float32))).real
        return update


class WaveletUpdate(SparseUpdate):
    """Values at single places of the spectrum of Haar's wavelets."""

    method = "waveft"
    defaults: ClassVar[Mapping[str, Any]] = {"places": 1000, "scale": 25.0, "seed": 0}

    def update(self, weight: Tensor) -> Tensor:
        """Transform the entries; an odd width is filled up by one, and its last row or column left out again."""
        spectrum = nn.functional.pad(self.entries(), (0, self.n_in % 2, 0, self.n_out % 2))
        (mean, across), (down, both) = (half.chunk(2, dim=1) for half in spectrum.chunk(2, dim=0))
        quarters = (
            mean + across + down + both,
            mean + across - down - both,
            mean - across + down - both,
            mean - across - down + both,
        )
        whole = torch.stack(quarters, dim=-1).view(*mean.shape, 2, 2).transpose(1, 2).reshape(spectrum.shape) / 2
        return whole[: self.n_out, : self.n_in]
