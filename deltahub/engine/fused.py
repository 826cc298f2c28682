"""Deltas on parts of a fused layer, such as the q rows of a q,k,v projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

from torch import Tensor, nn

from deltahub.engine.insertion import Args, Insertion, Kwargs, stackable
from deltahub.engine.structure.layouts import Part
from deltahub.engine.weights import SomeRows, as_kept, linear_bias, linear_weight


class FusedInsertion(Insertion):
    """An insertion that holds one insertion for each selected part of a layer; the other parts pass through.

    Args:
        parts: the parts, all of one layer, with the insertion of each.
    """

    def __init__(self, parts: Mapping[Part, Insertion]) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.reads_weight = any(insertion.reads_weight for insertion in parts.values())
        for part, insertion in parts.items():
            self.add_module(part.label, insertion)

    def at(self, part: Part) -> Insertion:
        """Return the insertion of a part."""
        return cast("Insertion", self._modules[part.label])

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the selected features of `output`, a tensor with shape ``(..., width)``."""
        for part in self.parts:
            rows = cast("nn.Module", SomeRows(target, part))  # the part's weights, for insertions that read them
            share = self.at(part).after(rows, args, kwargs, part.read(output))
            output = part.written(output, share)
        return output

    @classmethod
    def after_rows(cls, members: tuple[Self, ...], target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Process all rows at once if every member acts on the same parts and the insertions of each part can be stacked."""
        if any(one.parts != members[0].parts for one in members):
            return NotImplemented
        for part in members[0].parts:
            acting = tuple(one.at(part) for one in members)
            if len({stackable(one) for one in acting}) > 1:
                return NotImplemented
            rows = cast("nn.Module", SomeRows(target, part))
            share = type(acting[0]).after_rows(acting, rows, args, kwargs, part.read(output))
            if share is NotImplemented:
                return NotImplemented
            output = part.written(output, share)
        return output

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the target's weight, and its bias if that changes, with every part's own rows merged."""
        weight, bias = linear_weight(target), linear_bias(target)
        whole: dict[str, Tensor] = {}
        for part in self.parts:
            rows = part.rows(weight.shape[0]).to(weight.device)
            for key, value in self.at(part).merged(cast("nn.Module", SomeRows(target, part))).items():
                old = weight if key == "weight" or bias is None else bias
                new = whole.setdefault(key, old.detach().to(value.dtype).clone())
                new[rows] = value
        return {key: as_kept(target, value) if key == "weight" else value for key, value in whole.items()}
