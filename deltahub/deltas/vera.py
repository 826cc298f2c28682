"""VeRA: a low-rank update whose matrices are random, frozen and shared by all modules; only two vectors of each module train.

    y = W x + b * (B (d * (A x)))       A: (r, n_in), B: (n_out, r), shared;  d: (r,), b: (n_out,), b = 0 at the start

A module takes the first n_in columns of A and the first n_out rows of B, which are as wide as the widest module. Both are saved with the
delta, in the first module, so that no random generator has to give them again.

Kopiczko et al. 2024, "VeRA: Vector-based Random Matrix Adaptation", https://arxiv.org/abs/2310.11454
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits
from deltahub.deltas.precision import added
from deltahub.deltas.target_checks import require_linear
from deltahub.engine.building import Like
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.layers import linear_fault
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.engine.weights import as_stored, linear_weight, members_of
from deltahub.errors import MergeError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class VeraConfig(DeltaConfig):
    """Options of VeRA, with PEFT's names where it has them.

    Args:
        r: rank of the shared matrices.
        d_initial: value of d at the start.
        vera_dropout: share of the input dropped in training.
        projection_prng_key: seed of the shared matrices.
    """

    r: Count = 256
    d_initial: float = 0.1
    vera_dropout: Annotated[float, Limits(minimum=0, exclusiveMaximum=1)] = 0.0
    projection_prng_key: Annotated[int, Limits(minimum=0, maximum=2**63 - 1)] = 0

    delta_type: ClassVar[str] = "vera"


class VectorUpdate(Insertion):
    """An insertion that adds ``b * (B (d * (A x)))`` to the output of a linear layer.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
        config: the rank and the start.
    """

    def __init__(self, like: Tensor, n_in: int, n_out: int, config: VeraConfig) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out
        self.dropout = nn.Dropout(config.vera_dropout) if config.vera_dropout else None
        self.vera_lambda_d = nn.Parameter(like.new_full((config.r,), config.d_initial))
        self.vera_lambda_b = nn.Parameter(like.new_zeros(n_out))
        self.owner: tuple[VectorUpdate, ...] = ()  # a tuple keeps the shared matrices out of this module

    def own(self, down: Tensor, up: Tensor) -> None:
        """Hold the shared matrices, ``(r, widest n_in)`` and ``(widest n_out, r)``."""
        self.register_buffer("vera_A", down)
        self.register_buffer("vera_B", up)

    def factors(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return this module's share of A and of B."""
        holder = self.owner[0] if self.owner else self
        down, up = holder._buffers["vera_A"], holder._buffers["vera_B"]
        assert down is not None
        assert up is not None
        return down[:, : self.n_in].to(device, dtype), up[: self.n_out].to(device, dtype)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the output tensor, ``(..., n_out)``."""
        dtype = torch.promote_types(output.dtype, self.vera_lambda_d.dtype)
        down, up = self.factors(dtype, output.device)
        x = first_input(args, kwargs).to(dtype)
        low = self.vera_lambda_d.to(dtype) * F.linear(x if self.dropout is None else self.dropout(x), down)
        return added(output, self.vera_lambda_b.to(dtype) * F.linear(low, up))

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's weight with the update added."""
        if self.dropout is not None and self.training:
            raise MergeError("its dropout is on in training mode, so call eval() on the backbone before")
        if fault := linear_fault(target):
            raise MergeError(fault)
        weight = linear_weight(target)
        wide = torch.promote_types(weight.dtype, torch.float32)
        down, up = self.factors(wide, weight.device)
        update = (self.vera_lambda_b.to(wide)[:, None] * up) @ (self.vera_lambda_d.to(wide)[:, None] * down)
        return {"weight": as_stored(target, weight.to(wide) + update)}


class VeraModel(DeltaBase):
    """VeRA at every addressed linear layer; by default the q and v projections of self-attention.

    Args:
        backbone_model: the model to modify.
        r: rank of the shared matrices.
        d_initial: value of d at the start.
        vera_dropout: share of the input dropped in training.
        projection_prng_key: seed of the shared matrices.
        modified_modules: addresses of linear layers or Conv1D layers.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "vera"
    config_class = VeraConfig
    default_modified_modules = ("attn@.q@", "attn@.v@")

    def __init__(
        self,
        backbone_model: nn.Module,
        r: int = 256,
        d_initial: float = 0.1,
        vera_dropout: float = 0.0,
        projection_prng_key: int = 0,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = VeraConfig(
            r=r,
            d_initial=d_initial,
            vera_dropout=vera_dropout,
            projection_prng_key=projection_prng_key,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that each module is a linear layer."""
        require_linear(targets, "a VeRA")
        return targets

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: VeraConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the vectors of each module; the first module holds the shared matrices, and the others refer to it."""
        insertions = super().new_insertions(backbone, config, targets, like)
        members = (member for insertion in insertions.values() for member in members_of(insertion))
        first, *others = (member for member in members if isinstance(member, VectorUpdate))
        sizes = (
            (config.r, max(member.n_in for member in (first, *others))),
            (max(member.n_out for member in (first, *others)), config.r),
        )
        if first.vera_lambda_d.is_meta:
            first.own(*(first.vera_lambda_d.new_empty(size) for size in sizes))
        else:
            first.own(*(matrix.to(first.vera_lambda_d) for matrix in projections(sizes, config.projection_prng_key)))
        for other in others:
            other.owner = (first,)
        return insertions

    @classmethod
    def new_insertion(cls, config: VeraConfig, target: Target, width: int, like: Tensor) -> VectorUpdate:
        """Build new vectors for one layer, or for `width` rows of a fused one."""
        return VectorUpdate(like, linear_shape(target.name, target.module)[0], width, config)


def projections(sizes: Sequence[tuple[int, int]], seed: int) -> list[Tensor]:
    """Draw the shared matrices as PEFT draws them: A, then B, uniform with the variance 2 / columns."""
    draw = torch.Generator().manual_seed(seed)
    bounds = [math.sqrt(6 / columns) for _, columns in sizes]
    return [
        torch.empty(size).uniform_(-bound, bound, generator=draw) for size, bound in zip(sizes, bounds, strict=True)
    ]
