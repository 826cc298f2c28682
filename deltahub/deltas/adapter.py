"""Adapters: a small bottleneck after a layer.

    h' = h + g(h)        g(h) = W_up act(W_down h + b_down) + b_up        W_down: (bottleneck, width), W_up: (width, bottleneck)

h is the output of the layer. With `at_input` the adapter belongs to a LayerNorm after a residual sum x, as Pfeiffer et al. place it:

    y = LN(x + g(LN(x)))

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", https://arxiv.org/abs/1902.00751
Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", https://arxiv.org/abs/2005.00247
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.address import value_for
from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Text
from deltahub.deltas.adapter_layers import (
    HiddenUpdate,
    InputUpdate,
    activation,
    refuse_channels_first,
    refuse_parts_at_input,
    small_linear,
    without_defaults,
)
from deltahub.deltas.precision import linear, widened
from deltahub.deltas.target_checks import refuse_unmatched
from deltahub.engine.building import Like
from deltahub.engine.insertion import Insertion
from deltahub.engine.structure.targets import Target
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(DeltaConfig):
    """Options of adapters: the size and the activation of the bottleneck.

    Args:
        bottleneck_dim: width of the bottleneck, at least 1.
        non_linearity: relu, tanh, swish, gelu_new, gelu_orig, leakyrelu, or any activation that transformers knows.
        at_input: add the result to the input of the module, not to its output, and run the module on the sum.
        bottleneck_pattern: widths of single bottlenecks, by real address, instead of `bottleneck_dim`; the first address that
            matches a module counts.
    """

    bottleneck_dim: Count = 24
    non_linearity: Text = "gelu_new"
    at_input: bool = False
    bottleneck_pattern: Mapping[str, Count] = field(default_factory=dict)

    delta_type: ClassVar[str] = "adapter"

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types; what is off and unknown to older releases is left out."""
        return without_defaults(super().to_dict(), at_input=False, bottleneck_pattern={})


class Bottleneck(HiddenUpdate):
    """An insertion that adds ``up(act(down(h)))`` to the hidden state of a module's output.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
        bottleneck: size of the bottleneck.
        non_linearity: the activation: see `AdapterConfig`.
    """

    def __init__(self, like: Tensor, width: int, bottleneck: int, non_linearity: str) -> None:
        super().__init__()
        self.down_proj = small_linear(width, bottleneck, like)
        self.activation = activation(non_linearity)
        self.up_proj = small_linear(bottleneck, width, like)

    def update(self, hidden: Tensor) -> Tensor:
        """Compute ``up(act(down(h)))``, both ``(..., width)``."""
        h = widened(hidden, self.down_proj.weight)
        return linear(self.up_proj, self.activation(linear(self.down_proj, h)).to(h.dtype))


class InputBottleneck(InputUpdate, Bottleneck):
    """A bottleneck that adds its result to the input of a module."""


class AdapterModel(DeltaBase):
    """Adapters after every addressed module; by default the output projections of attention and feed-forward.

    Args:
        backbone_model: the model to modify.
        bottleneck_dim: width of the bottleneck, at least 1.
        non_linearity: the activation: see `AdapterConfig`.
        at_input: add the result to the input of each module, which is as wide as its output: see `AdapterConfig`.
        bottleneck_pattern: widths of single bottlenecks, by real address, instead of `bottleneck_dim`.
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

    delta_type = "adapter"
    config_class = AdapterConfig
    default_modified_modules = ("attn@.proj@", "ff@.w2@")

    def __init__(
        self,
        backbone_model: nn.Module,
        bottleneck_dim: int = 24,
        non_linearity: str = "gelu_new",
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        *,
        at_input: bool = False,
        bottleneck_pattern: Mapping[str, int] | None = None,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = AdapterConfig(
            bottleneck_dim=bottleneck_dim,
            non_linearity=non_linearity,
            at_input=at_input,
            bottleneck_pattern=dict(bottleneck_pattern or {}),
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
    def new_insertions(
        cls, backbone: nn.Module, config: AdapterConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build a bottleneck for each module.

        Raises:
            NoMatchError: an address of `bottleneck_pattern` matches no module of the delta.
        """
        refuse_unmatched(config.bottleneck_pattern, "bottleneck_pattern", [target.name for target in targets])
        return super().new_insertions(backbone, config, targets, like)

    @classmethod
    def new_insertion(cls, config: AdapterConfig, target: Target, width: int, like: Tensor) -> Bottleneck:
        """Build a new bottleneck for one module."""
        bottleneck = value_for(config.bottleneck_pattern, target.name, config.bottleneck_dim)
        if config.at_input:
            refuse_parts_at_input(target)
        return (InputBottleneck if config.at_input else Bottleneck)(like, width, bottleneck, config.non_linearity)
