"""The insertions of LoRA: a low-rank update of a linear layer, a convolution or an embedding, and that of DoRA.

The formulas are in `deltahub.deltas.lora`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar, Final, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from deltahub.deltas.precision import added, widened
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.layers import embed_scale, linear_fault, lookup_fault, reading_fault, weight_fault
from deltahub.engine.weights import as_stored, linear_bias, linear_weight
from deltahub.errors import MergeError

_GAIN: Final = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))


class LowRankUpdate(Insertion):
    """An insertion that adds ``scale * B A x`` to the output of a linear layer.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
        rank: width in between.
        scale: factor of the update.
        dropout: share of the input dropped in training.
        bias: whether B has a bias, scaled like the update.
    """

    fast_parameters: ClassVar[frozenset[str]] = frozenset({"lora_B", "lora_bias"})

    def __init__(
        self,
        like: Tensor,
        n_in: int,
        n_out: int,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.scale: float | Tensor = scale
        self.full_scale = scale  # at a strength of 1
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.lora_A = nn.Parameter(like.new_empty(rank, n_in))
        self.lora_B = nn.Parameter(like.new_zeros(n_out, rank))
        self.lora_bias = nn.Parameter(like.new_zeros(n_out)) if bias else None
        if not like.is_meta:
            self.reset()

    def set_strength(self, strength: float) -> None:
        """Multiply the scale; as a tensor, compiled code takes another one without being compiled again."""
        scale = self.full_scale * strength
        self.scale = scale if strength == 1 else torch.tensor(scale, dtype=torch.float64)

    def reset(self) -> None:
        """Initialise A like a linear layer's weight; B is zero as it was made."""
        # The values of nn.init.kaiming_uniform_(a=sqrt(5)), which takes longer for its checks than for the numbers.
        bound = math.sqrt(3.0) * (_GAIN / math.sqrt(max(self.lora_A.shape[1], 1)))
        self.lora_A.data.uniform_(-bound, bound)

    def low_rank(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute ``A x`` in a given precision: input tensor with shape ``(..., n_in)``, output ``(..., r)``."""
        x = x.to(dtype)
        return F.linear(x if self.dropout is None else self.dropout(x), self.lora_A.to(dtype))

    def precision(self, output: Tensor) -> torch.dtype:
        """Return the wider of the precisions of the parameters and of a hidden state."""
        return torch.promote_types(output.dtype, self.lora_A.dtype)

    def update(self, x: Tensor, output: Tensor) -> Tensor:
        """Compute ``s B A x``, ``(..., n_out)``, in the wider of the precisions of the parameters and of `output`."""
        dtype = self.precision(output)
        bias = None if self.lora_bias is None else self.lora_bias.to(dtype)
        return self.scale * F.linear(self.low_rank(x, dtype), self.lora_B.to(dtype), bias)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the output tensor, ``(..., n_out)``."""
        x = first_input(args, kwargs)
        # `_parameters[...]`, not attributes: for one token nn.Module.__getattr__ would be a noticeable part of the cost.
        down, up = cast("tuple[Tensor, Tensor]", (self._parameters["lora_A"], self._parameters["lora_B"]))
        # A subclass may compute another update.
        scale, plain = self.scale, type(self) is LowRankUpdate and self.dropout is None and self.lora_bias is None
        if plain and isinstance(scale, float) and x.dtype == down.dtype == up.dtype == output.dtype:
            return torch.add(output, F.linear(F.linear(x, down), up), alpha=scale)
        return added(output, self.update(x, output))

    @classmethod
    def after_rows(cls, members: tuple[Self, ...], target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Compute all rows with two stacked products; lower ranks are padded.

        The input has shape ``(rows, length, n_in)``, the output ``(rows, length, n_out)``.
        """
        if any(member.lora_bias is not None or (member.dropout is not None and member.training) for member in members):
            return NotImplemented
        # `_parameters[...]`, not attributes: for many rows nn.Module.__getattr__ would be a fifth of the cost.
        downs = [cast("Tensor", member._parameters["lora_A"]) for member in members]
        ups = [cast("Tensor", member._parameters["lora_B"]) for member in members]
        ranks = {down.size(0) for down in downs}
        if len(ranks) > 1:
            widest = max(ranks)
            downs = [F.pad(down, (0, 0, 0, widest - len(down))) for down in downs]
            ups = [F.pad(up, (0, widest - up.shape[1])) for up in ups]
        dtype, dtypes = output.dtype, {side.dtype for side in (*downs, *ups)}
        if dtypes != {dtype}:
            dtype = reduce(torch.promote_types, dtypes, dtype)
            downs, ups = ([side.to(dtype) for side in sides] for sides in (downs, ups))
        x = first_input(args, kwargs).to(dtype)
        low = torch.bmm(x.reshape(len(members), -1, x.shape[-1]), torch.stack(downs).mT)
        scales = [member.scale for member in members]
        scale = scales[0]
        if len({*scales}) > 1 or not isinstance(scale, float):
            low, scale = low.new_tensor(scales).view(-1, 1, 1) * low, 1.0
        update = torch.bmm(low, torch.stack(ups).mT).view(output.shape)
        return torch.add(output, update, alpha=scale).to(output.dtype)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's weight with the update added, and its bias with that of B."""
        values = {"weight": as_stored(target, self._sum(target))}
        if self.lora_bias is None:
            return values
        if (bias := linear_bias(target)) is None:
            raise MergeError("it has no bias of its own to add to")
        return {**values, "bias": bias.to(values["weight"].dtype) + self.scale * self.lora_bias}

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the update cannot be merged into the layer's weight: a clause, empty if it can."""
        return linear_fault(target)

    def product(self, dtype: torch.dtype) -> Tensor:
        """Compute ``B A``, ``(n_out, n_in)``."""
        return self.lora_B.to(dtype) @ self.lora_A.to(dtype)

    def _sum(self, target: nn.Module) -> Tensor:
        """Return ``W + s B A`` as ``(n_out, n_in)``, in float32 or wider."""
        if self.dropout is not None and self.training:
            raise MergeError("its dropout is on in training mode, so call eval() on the backbone before")
        if fault := self.merge_fault(target):
            raise MergeError(fault)
        weight = linear_weight(target)
        wide = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(wide) + self.scale * self.product(wide)


class LowRankKernel(LowRankUpdate):
    """A low-rank update of a convolution: A is a convolution to r channels, B mixes them.

    With groups, A reads the channels of one group and is the same for each; B has the rows of all groups. So B A has the shape of the
    kernel whatever the rank, and is added to it when merged.
    """

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the output tensor, ``(batch, n_out, *spatial)``."""
        layer, dtype = cast("_ConvNd", target), self.precision(output)
        x = first_input(args, kwargs).to(dtype)
        x = x if self.dropout is None else self.dropout(x)
        if layer.groups > 1:  # one small kernel for each group costs less than r channels for each
            kernel = (self.lora_B.to(dtype) @ self.lora_A.to(dtype)).view(layer.weight.shape)
            bias = None if self.lora_bias is None else self.lora_bias.to(dtype)
            return added(output, self.scale * layer._conv_forward(x, kernel, bias))
        low = layer._conv_forward(x, self.lora_A.to(dtype).view(-1, *layer.weight.shape[1:]), None)
        channel = low.dim() - 1 - len(layer.kernel_size)
        bias = None if self.lora_bias is None else self.lora_bias.to(dtype)
        update = F.linear(low.movedim(channel, -1), self.lora_B.to(dtype), bias).movedim(-1, channel)
        return added(output, self.scale * update)

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the update cannot be merged into the kernel: a clause, empty if it can."""
        return weight_fault(target)


class LowRankRows(LowRankUpdate):
    """A low-rank update of an embedding, whose inputs are row numbers; A starts at zero, as in the authors' own code.

    If an embedding multiplies its rows by an `embed_scale`, the update is multiplied too, because it belongs to the weight.
    """

    fast_parameters: ClassVar[frozenset[str]] = (
        frozenset()
    )  # LoRA+ is about matrices behind a wide input; these are looked up

    def reset(self) -> None:
        """Initialise B with normally distributed values; A is zero."""
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update of the input's indices, ``(...)``, to the output tensor, ``(..., n_out)``."""
        table = cast("nn.Embedding", target)
        rows = F.embedding(
            first_input(args, kwargs),
            self.lora_A.T,
            padding_idx=table.padding_idx,
            scale_grad_by_freq=table.scale_grad_by_freq,
        )
        wide = torch.promote_types(output.dtype, self.lora_A.dtype)
        update = self.scale * F.linear(rows.to(wide), self.lora_B.to(wide))
        if (scale := embed_scale(table)) is not None:
            update = update * (scale.to(update) if isinstance(scale, Tensor) else scale)
        return added(output, update)

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the update cannot be merged into the table: a clause, empty if it can."""
        return reading_fault(target) or lookup_fault(cast("nn.Embedding", target))


class DecomposedUpdate(LowRankUpdate):
    """DoRA: a low-rank update of a weight's direction, and a trained magnitude of each row.

    Args:
        layer: the linear layer, whose rows give the initial magnitudes.
    """

    reads_weight = True
    starts = frozenset({"lora_magnitude_vector"})
    set_strength = Insertion.set_strength  # the norm depends on the scale

    def __init__(
        self, like: Tensor, layer: nn.Module, n_in: int, n_out: int, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(like, n_in, n_out, rank, scale, dropout)
        start = like.new_empty(n_out) if like.is_meta else self._norm(linear_weight(layer)).to(like)
        self.lora_magnitude_vector = nn.Parameter(start)

    @torch.no_grad()
    def at_start(self, target: nn.Module) -> bool:
        """Return whether the magnitudes are the norms of the rows, so that without an update nothing changes."""
        return torch.equal(self.lora_magnitude_vector, self._norm(linear_weight(target)).to(self.lora_magnitude_vector))

    @torch.no_grad()
    def _norm(self, weight: Tensor) -> Tensor:
        """Return the norm of each row of ``W + s B A``, ``(n_out,)``."""
        weight = widened(weight, self.lora_A)
        update = (self.lora_B.to(weight.dtype) @ self.lora_A.to(weight.dtype)).to(weight.dtype)  # autocast narrows it
        norm: Tensor = torch.linalg.vector_norm(weight + self.scale * update, dim=1)
        return norm

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the output tensor, ``(..., n_out)``: the linear part computed by `target` is scaled, its bias is not."""
        weight = linear_weight(target)  # read once: a quantised one is dequantised
        gain = self.lora_magnitude_vector / self._norm(weight)
        x, bias, dtype = first_input(args, kwargs), linear_bias(target), self.precision(output)
        linear = output if bias is None else output - bias
        if self.dropout is not None and self.training:  # as in PEFT, the rescaled part has the same dropout
            x = self.dropout(x.to(dtype))
            linear = F.linear(x, weight.to(dtype))
        low = F.linear(x.to(dtype), self.lora_A.to(dtype))
        return added(output, (gain - 1) * linear + gain * self.scale * F.linear(low, self.lora_B.to(dtype)))

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's weight with its new direction and magnitude."""
        weight = self._sum(target)
        gain = self.lora_magnitude_vector.to(weight.dtype) / torch.linalg.vector_norm(weight, dim=1)
        return {"weight": as_stored(target, gain[:, None] * weight)}
