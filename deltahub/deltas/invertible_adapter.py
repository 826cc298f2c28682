"""Invertible adapter: a coupling layer behind the embeddings, as in the language adapters of MAD-X.

    y_1 = x_1 + F(x_2)      y_2 = x_2 + G(y_1)      F(x) = U act(D x + b) + c, and G alike

x_1 and x_2 are the halves of the hidden state. Nothing here inverts it: a language model's head gets the hidden state as it is.

Pfeiffer et al. 2020, "MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer", https://arxiv.org/abs/2005.00052
Dinh et al. 2014, "NICE: Non-linear Independent Components Estimation", https://arxiv.org/abs/1410.8516
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Limits, Text
from deltahub.deltas.adapter_layers import (
    HiddenUpdate,
    activation,
    refuse_channels_first,
    refuse_parts_at_input,
    small_linear,
)
from deltahub.deltas.precision import linear, widened
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class InvertibleAdapterConfig(DeltaConfig):
    """Options of an invertible adapter: the size and the activation of its two networks.

    Args:
        reduction_factor: how many times narrower than its input the middle of each network is, at least 1.
        non_linearity: relu, tanh, swish, gelu_new, gelu_orig, leakyrelu, or any activation that transformers knows.
    """

    reduction_factor: Annotated[float, Limits(minimum=1, maximum=1 << 20)] = 2
    non_linearity: Text = "relu"

    delta_type: ClassVar[str] = "invertible_adapter"


class Coupling(HiddenUpdate):
    """An insertion that adds to each half of a hidden state an update computed from the other half.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state, at least 2.
        config: the sizes and the activation.
        address: the module, for messages.

    Raises:
        ConfigError: the networks would have no width.
    """

    def __init__(self, like: Tensor, width: int, config: InvertibleAdapterConfig, address: str) -> None:
        super().__init__()
        first, second = width // 2, width - width // 2
        middle = [int(half // config.reduction_factor) for half in (second, first)]
        if 0 in (first, *middle):
            msg = f"reduction_factor {config.reduction_factor} leaves nothing of a half of the width {width} of {address}. Choose a smaller one."
            raise ConfigError(msg)
        self.F_down, self.F_up = small_linear(second, middle[0], like), small_linear(middle[0], first, like)
        self.G_down, self.G_up = small_linear(first, middle[1], like), small_linear(middle[1], second, like)
        self.activation = activation(config.non_linearity)

    def update(self, hidden: Tensor) -> Tensor:
        """Compute ``[F(x_2); G(y_1)]``, ``(..., width)`` as the hidden state."""
        x = widened(hidden, self.F_down.weight)
        first, second = torch.split(x, [self.G_down.in_features, self.F_down.in_features], dim=-1)
        own = self._network(self.F_down, self.F_up, second)
        return torch.cat([own, self._network(self.G_down, self.G_up, first + own)], dim=-1)

    def _network(self, down: nn.Linear, up: nn.Linear, x: Tensor) -> Tensor:
        return linear(up, self.activation(linear(down, x)).to(x.dtype))


class InvertibleAdapterModel(DeltaBase):
    """A coupling layer behind every addressed module; by default behind the embeddings.

    Args:
        backbone_model: the model to modify.
        reduction_factor: how many times narrower than its input the middle of each network is.
        non_linearity: the activation: see `InvertibleAdapterConfig`.
        modified_modules: addresses of modules that return a hidden state.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "invertible_adapter"
    config_class = InvertibleAdapterConfig
    default_modified_modules = ("embeddings",)
    default_exclude_modules = ("lm_head", "shared")  # T5 never calls `shared`, only the embeddings of its two stacks

    def __init__(
        self,
        backbone_model: nn.Module,
        reduction_factor: float = 2,
        non_linearity: str = "relu",
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
        config = InvertibleAdapterConfig(
            reduction_factor=reduction_factor,
            non_linearity=non_linearity,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that the hidden state of each module has its width in the last dimension, and that whole modules are meant."""
        refuse_channels_first(targets)
        for target in targets:
            refuse_parts_at_input(target)
        return targets

    @classmethod
    def new_insertion(cls, config: InvertibleAdapterConfig, target: Target, width: int, like: Tensor) -> Coupling:
        """Build a new coupling layer for one module."""
        return Coupling(like, width, config, target.name)
