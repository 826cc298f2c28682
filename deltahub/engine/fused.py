"""Deltas on parts of a fused layer, such as the q rows of a q,k,v projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from deltahub.engine.site import Args, Insertion, Kwargs
from deltahub.engine.structure import Part


class FusedInsertion(Insertion):
    """One insertion for each part that is meant; every other part passes through.

    Args:
        parts: the parts, all of one layer, with what acts on each.
    """

    def __init__(self, parts: Mapping[Part, Insertion]) -> None:
        super().__init__()
        self.count = next(iter(parts)).count
        self.labels = {part.label: part.index for part in parts}
        for part, insertion in parts.items():
            self.add_module(part.label, insertion)

    def after(self, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the meant shares of the last dimension of `output`."""
        shares = list(output.chunk(self.count, dim=-1))
        for label, index in self.labels.items():
            insertion = self._modules[label]
            assert isinstance(insertion, Insertion)
            shares[index] = insertion.after(args, kwargs, shares[index])
        return torch.cat(shares, dim=-1)
