"""Low-rank adapters: an adapter whose two matrices are products of thin ones.

    h' = h + act(h D + b_D) U + b_U      D = D_left D_right: (width, bottleneck), U = U_left U_right: (bottleneck, width)

Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", section 4.1 (its low-rank baseline),
https://arxiv.org/abs/2106.04647
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits, Text
from deltahub.deltas.adapter_layers import activation, bottleneck_width, refuse_channels_first
from deltahub.deltas.precision import added, widened
from deltahub.engine.insertion import Args, Insertion, Kwargs, map_hidden
from deltahub.engine.structure.targets import Target
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class LowRankAdapterConfig(DeltaConfig):
    """Options of low-rank adapters: the size, the rank and the activation of the bottleneck.

    Args:
        reduction_factor: how many times narrower than the hidden state the bottleneck is.
        non_linearity: see `AdapterConfig`.
        low_rank_w_init: ``"glorot-uniform"`` or ``"glorot-normal"``.
        low_rank_rank: rank of each of the two matrices, at least 1.
    """

    reduction_factor: Count = 32
    non_linearity: Text = "gelu_new"
    low_rank_w_init: Annotated[str, Limits(enum=["glorot-uniform", "glorot-normal"])] = "glorot-uniform"
    low_rank_rank: Count = 1

    delta_type: ClassVar[str] = "low_rank_adapter"


class LowRankLinear(nn.Module):
    """A linear layer with a low-rank weight: ``x W_left W_right + b``.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
    """

    def __init__(self, like: Tensor, n_in: int, n_out: int, config: LowRankAdapterConfig) -> None:
        super().__init__()
        self.W_left = nn.Parameter(like.new_empty(n_in, config.low_rank_rank))
        self.W_right = nn.Parameter(like.new_empty(config.low_rank_rank, n_out))
        self.b = nn.Parameter(like.new_zeros(n_out))
        draw = nn.init.xavier_normal_ if config.low_rank_w_init == "glorot-normal" else nn.init.xavier_uniform_
        if not like.is_meta:
            draw(self.W_left, gain=math.sqrt(2))
            draw(self.W_right, gain=math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map an input tensor, ``(..., n_in)``, to an output, ``(..., n_out)``, in the precision of the input."""
        return (x @ self.W_left.to(x.dtype)) @ self.W_right.to(x.dtype) + self.b.to(x.dtype)


class LowRankBottleneck(Insertion):
    """An insertion that adds ``up(act(down(h)))`` to the hidden state of a module's output.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
        bottleneck: size of the bottleneck.
    """

    def __init__(self, like: Tensor, width: int, bottleneck: int, config: LowRankAdapterConfig) -> None:
        super().__init__()
        self.down_sampler = LowRankLinear(like, width, bottleneck, config)
        self.activation = activation(config.non_linearity)
        self.up_sampler = LowRankLinear(like, bottleneck, width, config)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the hidden state, ``(..., width)``; other outputs of the module pass through."""
        return map_hidden(output, self._change)

    def _change(self, hidden: Tensor) -> Tensor:
        h = widened(hidden, self.down_sampler.b)
        return added(hidden, self.up_sampler(self.activation(self.down_sampler(h)).to(h.dtype)))


class LowRankAdapterModel(DeltaBase):
    """Low-rank adapters after every addressed module; by default the output projections of attention and feed-forward.

    Args:
        backbone_model: the model to modify.
        reduction_factor: how many times narrower than the hidden state the bottleneck is.
        non_linearity: the activation: see `AdapterConfig`.
        low_rank_w_init: ``"glorot-uniform"`` or ``"glorot-normal"``.
        low_rank_rank: rank of each of the two matrices.
        modified_modules: addresses of modules that return a hidden state, alone or as the first of several outputs.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        backend: only ``"hf"``.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "low_rank_adapter"
    config_class = LowRankAdapterConfig
    default_modified_modules = ("attn@.proj@", "ff@.w2@")

    def __init__(
        self,
        backbone_model: nn.Module,
        reduction_factor: int = 32,
        non_linearity: str = "gelu_new",
        low_rank_w_init: str = "glorot-uniform",
        low_rank_rank: int = 1,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        *,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = LowRankAdapterConfig(
            reduction_factor=reduction_factor,
            non_linearity=non_linearity,
            low_rank_w_init=low_rank_w_init,
            low_rank_rank=low_rank_rank,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(
            backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify, backend=backend
        )

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that the hidden state of each module has its width in the last dimension."""
        refuse_channels_first(targets)
        return targets

    @classmethod
    def new_insertion(cls, config: LowRankAdapterConfig, target: Target, width: int, like: Tensor) -> LowRankBottleneck:
        """Build a new low-rank bottleneck for one module."""
        return LowRankBottleneck(like, width, bottleneck_width(width, config.reduction_factor, target.name), config)
