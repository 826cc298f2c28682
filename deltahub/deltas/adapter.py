"""Adapters: a small bottleneck after a layer.

    h' = h + W_up act(W_down h + b_down) + b_up        W_down: (bottleneck, width), W_up: (width, bottleneck)

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", https://arxiv.org/abs/1902.00751
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Text
from deltahub.deltas.adapter_layers import activation, refuse_channels_first, small_linear
from deltahub.deltas.precision import added, linear, widened
from deltahub.engine.insertion import Args, Insertion, Kwargs, map_hidden
from deltahub.engine.structure.targets import Target
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(DeltaConfig):
    """Options of adapters: the size and the activation of the bottleneck.

    Args:
        bottleneck_dim: width of the bottleneck, at least 1.
        non_linearity: relu, tanh, swish, gelu_new, gelu_orig, leakyrelu, or any activation that transformers knows.
    """

    bottleneck_dim: Count = 24
    non_linearity: Text = "gelu_new"

    delta_type: ClassVar[str] = "adapter"


class Bottleneck(Insertion):
    """An insertion that adds ``up(act(down(h)))`` to the hidden state of a module's output.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
    """

    def __init__(self, like: Tensor, width: int, config: AdapterConfig) -> None:
        super().__init__()
        self.down_proj = small_linear(width, config.bottleneck_dim, like)
        self.activation = activation(config.non_linearity)
        self.up_proj = small_linear(config.bottleneck_dim, width, like)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the hidden state, ``(..., width)``; other outputs of the module pass through."""
        return map_hidden(output, self._change)

    def _change(self, hidden: Tensor) -> Tensor:
        h = widened(hidden, self.down_proj.weight)
        return added(hidden, linear(self.up_proj, self.activation(linear(self.down_proj, h)).to(h.dtype)))


class AdapterModel(DeltaBase):
    """Adapters after every addressed module; by default the output projections of attention and feed-forward.

    Args:
        backbone_model: the model to modify.
        bottleneck_dim: width of the bottleneck, at least 1.
        non_linearity: the activation: see `AdapterConfig`.
        modified_modules: addresses of modules that return a hidden state, alone or as the first of several outputs.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        backend: only ``"hf"``.
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
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = AdapterConfig(
            bottleneck_dim=bottleneck_dim,
            non_linearity=non_linearity,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
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
    def new_insertion(cls, config: AdapterConfig, target: Target, width: int, like: Tensor) -> Bottleneck:
        """Build a new bottleneck for one module."""
        return Bottleneck(like, width, config)
