"""A full update of the weight, and of the bias if asked for: the form of any method whose update has no shorter one.

y = (W + dW) x + b + db        dW: (n_out, n_in), db: (n_out,), 0 at the start
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from deltahub.deltas.updates.update import WeightUpdate


class DenseUpdate(WeightUpdate):
    """A trained matrix, see above."""

    method = "dense"
    defaults: ClassVar[Mapping[str, Any]] = {"bias": False}

    def create(self, like: Tensor) -> None:
        """Create dW, and db with ``bias``."""
        self.change = nn.Parameter(like.new_zeros(self.n_out, self.n_in))
        self.bias_change = nn.Parameter(like.new_zeros(self.n_out)) if self["bias"] else None

    def update(self, weight: Tensor) -> Tensor:
        """Return dW."""
        return self.change

    def shift(self, target: nn.Module) -> Tensor | None:
        """Return db."""
        return self.bias_change
