"""LoRA on the projections of `nn.MultiheadAttention`: q, k, v and proj.

The attention reads its weights itself, so the output is computed anew with ``W + s B A``, in the wider of the precisions of the
parameters and of the output. Several LoRAs add up: the first of them computes the output with the updates of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from deltahub.deltas.lora_layers import LowRankUpdate
from deltahub.engine.insertion import Args, Insertion, Kwargs, acts_in
from deltahub.engine.layers import reading_fault
from deltahub.engine.modules import module_at
from deltahub.engine.site import CHILD, site_of
from deltahub.engine.structure.projections import (
    OUT,
    PROJECTIONS,
    changed_weights,
    is_called_as_written,
    output_with,
    projection_shape,
)
from deltahub.engine.structure.targets import Target
from deltahub.errors import MergeError, TargetError


class AttentionUpdate(Insertion):
    """An insertion with a low-rank update for each addressed projection of an attention.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        layer: the attention.
        labels: the projections, out of q, k, v and proj.
        rank: rank of each update.
        scale: factor of the updates.
    """

    recomputes = True
    keeps_length = False  # the batch may be the second dimension, so rows cannot be told

    def __init__(
        self, like: Tensor, layer: nn.MultiheadAttention, labels: Sequence[str], rank: int, scale: float
    ) -> None:
        super().__init__()
        for label in labels:
            self.add_module(label, LowRankUpdate(like, *projection_shape(layer, label), rank, scale))

    def check_strength(self, strength: float) -> None:
        """Accept any strength: the updates have a scale."""

    def set_strength(self, strength: float) -> None:
        """Multiply the scale of each update."""
        for part in self._modules.values():
            cast("LowRankUpdate", part).set_strength(strength)

    def changes(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return ``s B A`` of each projection, ``(n_out, n_in)``."""
        parts = {label: cast("LowRankUpdate", part) for label, part in self._modules.items()}
        return {k: part.scale * (part.lora_B.to(dtype) @ part.lora_A.to(dtype)) for k, part in parts.items()}

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Compute the output, a tensor and the attention weights or None, with the updates of all LoRAs on the attention."""
        acting = [other for other in site_of(target).afters if isinstance(other, AttentionUpdate)]
        if acting and acting[0] is not self:
            return output
        layer, precision = cast("nn.MultiheadAttention", target), next(self.parameters()).dtype
        dtype = torch.promote_types(output[0].dtype, precision)
        changes: dict[str, Tensor] = {}
        for update in acting or [self]:
            for label, change in update.changes(dtype).items():
                changes[label] = changes[label] + change if label in changes else change
        computed = output_with(layer, changed_weights(layer, changes, dtype), args, kwargs, dtype)
        pairs = zip(computed, output, strict=True)
        return tuple(new if new is None else new.to(old.dtype) for new, old in pairs)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the weights of the attention with the updates added."""
        layer = cast("nn.MultiheadAttention", target)
        if fault := attention_fault(layer):
            raise MergeError(fault)
        dtype = torch.promote_types(layer.out_proj.weight.dtype, torch.float32)
        return changed_weights(layer, self.changes(dtype), dtype)


def attention_fault(layer: nn.MultiheadAttention) -> str:
    """Return why the projections of an attention cannot hold a LoRA, as a clause; empty if they can."""
    slots = site_of(layer).slots if CHILD in layer._modules else {}
    if replacing := [name for name, other in slots.items() if acts_in(other, "substitute")]:
        return f"{replacing[0]!r} already acts on its parameters by name; address them by name here too"
    if not is_called_as_written(layer):
        return f"its forward is {type(layer).__name__}'s own"
    key = "in_proj_weight" if layer._qkv_same_embed_dim else "q_proj_weight"
    if fault := reading_fault(layer, key) or reading_fault(layer.out_proj):
        return fault
    earlier = [name for name, other in slots.items() if acts_in(other, "after")]
    if earlier and not isinstance(slots[earlier[0]], AttentionUpdate):
        return f"{earlier[0]!r} already changes its output, which is to be computed anew; add the LoRA before that"
    return ""


def with_projections(backbone: nn.Module, targets: Sequence[Target]) -> list[Target]:
    """Return targets with each output layer of an attention replaced by that part of the attention."""
    chosen: dict[str, Target] = {}
    for target in targets:
        parent, _, key = target.name.rpartition(".")
        holder = module_at(backbone, parent)
        if key == OUT and isinstance(holder, nn.MultiheadAttention):
            target = Target(parent, holder, PROJECTIONS[-1:])  # noqa: PLW2901
        if (known := chosen.get(target.address)) is not None:
            both = (*known.parts, *target.parts) if known.parts and target.parts else ()  # () is the whole attention
            target = replace(target, parts=both)  # noqa: PLW2901
        chosen[target.address] = target
    return list(chosen.values())


def attention_update(config: Any, target: Target, like: Tensor) -> AttentionUpdate:
    """Build the update of an attention, or of some of its projections.

    Raises:
        TargetError: the config asks for something that it cannot hold.
    """
    options = {"use_dora": config.use_dora, "use_bias": config.use_bias, "lora_dropout": config.lora_dropout}
    if asked := [name for name, value in options.items() if value]:
        msg = f"{target.name} is an nn.MultiheadAttention, which reads its weights itself and has no {asked[0]}. Leave it out, or leave {asked[0]} off."
        raise TargetError(msg)
    layer = cast("nn.MultiheadAttention", target.module)
    labels = [part.label for part in PROJECTIONS if part in (target.parts or PROJECTIONS)]
    return AttentionUpdate(like, layer, labels, *config.sizes(target.name))
