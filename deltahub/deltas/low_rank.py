"""Low-rank updates of a linear layer: what LoRA and DoRA do at one module.

    LoRA    y = W x + s B A x                               A: (r, n_in), B: (n_out, r)
    DoRA    y = m * (W + s B A) x / ||W + s B A||           m, ||.||: (n_out,), the norm of each row; m = ||W|| at the start

As its authors advise (section 4.3), no gradient goes through DoRA's norm.

Hu et al. 2021, https://arxiv.org/abs/2106.09685; Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation",
https://arxiv.org/abs/2402.09353
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.weights import as_kept, linear_bias, linear_weight
from deltahub.errors import MergeError


class LowRankUpdate(Insertion):
    """Adds ``scale * B A x`` to the output of a linear layer.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
        rank: width in between.
        scale: what the update is multiplied by.
        dropout: share of the input that is dropped in training.
    """

    def __init__(self, like: Tensor, n_in: int, n_out: int, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.lora_A = nn.Parameter(like.new_empty(rank, n_in))
        self.lora_B = nn.Parameter(like.new_zeros(n_out, rank))
        if not like.is_meta:
            self.reset()

    def reset(self) -> None:
        """Draw A as a linear layer's weight is drawn; B stays zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def low_rank(self, x: Tensor) -> Tensor:
        """``A x``: input tensor with shape ``(..., n_in)``, output ``(..., r)``."""
        x = x.to(self.lora_A.dtype)
        return F.linear(x if self.dropout is None else self.dropout(x), self.lora_A)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Output tensor with shape ``(..., n_out)``."""
        update = F.linear(self.low_rank(first_input(args, kwargs)), self.lora_B)
        return output + (self.scale * update).to(output.dtype)

    @classmethod
    def after_rows(cls, members: tuple[Self, ...], target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Two stacked products for all rows, ``(rows, length, n_in)`` to ``(rows, length, n_out)``; lower ranks are padded."""
        if any(one.dropout is not None and one.training for one in members):
            return NotImplemented
        # `_parameters[...]`, not attributes: for many rows nn.Module.__getattr__ would be a fifth of the cost.
        downs = [cast("Tensor", one._parameters["lora_A"]) for one in members]
        ups = [cast("Tensor", one._parameters["lora_B"]) for one in members]
        widest = max(map(len, downs))
        if min(map(len, downs)) < widest:
            downs = [F.pad(down, (0, 0, 0, widest - len(down))) for down in downs]
            ups = [F.pad(up, (0, widest - up.shape[1])) for up in ups]
        x = first_input(args, kwargs).to(downs[0].dtype)
        low = torch.bmm(x.reshape(len(members), -1, x.shape[-1]), torch.stack(downs).mT)
        scales = [one.scale for one in members]
        scale = scales[0] if len({*scales}) == 1 else low.new_tensor(scales).view(-1, 1, 1)
        update = torch.bmm(scale * low, torch.stack(ups).mT)
        return output + update.view(output.shape).to(output.dtype)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """The layer's weight with the update added."""
        return {"weight": as_kept(target, self._sum(target))}

    def _sum(self, target: nn.Module) -> Tensor:
        """``W + s B A`` as ``(n_out, n_in)``, in float32 or wider."""
        if self.dropout is not None and self.training:
            raise MergeError("its dropout is on in training mode, so call eval() on the backbone before")
        weight = linear_weight(target)
        wide = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(wide) + self.scale * (self.lora_B.to(wide) @ self.lora_A.to(wide))


class LowRankRows(LowRankUpdate):
    """The same for an embedding, whose inputs are row numbers; A starts at zero, as in the authors' own code."""

    def reset(self) -> None:
        """Draw B; A is zero."""
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def low_rank(self, x: Tensor) -> Tensor:
        """Rows of A: input tensor of indices with shape ``(...)``, output ``(..., r)``."""
        return F.embedding(x, self.lora_A.T)


class DecomposedUpdate(LowRankUpdate):
    """DoRA: a low-rank update of a weight's direction, and a trained magnitude of each row.

    Args:
        layer: the linear layer, whose rows give the first magnitudes.
    """

    reads_weight = True

    def __init__(
        self, like: Tensor, layer: nn.Module, n_in: int, n_out: int, rank: int, scale: float, dropout: float = 0.0
    ) -> None:
        super().__init__(like, n_in, n_out, rank, scale, dropout)
        start = like.new_empty(n_out) if like.is_meta else self._norm(layer).to(like)
        self.lora_magnitude_vector = nn.Parameter(start)

    @torch.no_grad()
    def _norm(self, layer: nn.Module) -> Tensor:
        """The norm of each row of ``W + s B A``, ``(n_out,)``."""
        weight = linear_weight(layer)
        update = (self.lora_B @ self.lora_A).to(weight.dtype)
        norm: Tensor = torch.linalg.vector_norm(weight + self.scale * update, dim=1)
        return norm

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Output tensor with shape ``(..., n_out)``; the part of it that `target` made is scaled, its bias is not."""
        gain = (self.lora_magnitude_vector / self._norm(target).to(self.lora_magnitude_vector.dtype)).to(output.dtype)
        x, bias = first_input(args, kwargs), linear_bias(target)
        linear = output if bias is None else output - bias
        if self.dropout is not None and self.training:  # as in PEFT, the rescaled part sees the same dropped input
            x = self.dropout(x.to(self.lora_A.dtype))
            weight = linear_weight(target)
            linear = F.linear(x.to(weight.dtype), weight).to(output.dtype)
        update = self.scale * F.linear(F.linear(x.to(self.lora_A.dtype), self.lora_A), self.lora_B)
        return output + (gain - 1) * linear + gain * update.to(output.dtype)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """The layer's weight with its new direction and magnitude."""
        whole = self._sum(target)
        gain = self.lora_magnitude_vector.to(whole.dtype) / torch.linalg.vector_norm(whole, dim=1)
        return {"weight": as_kept(target, gain[:, None] * whole)}
