"""BitFit: only biases are trained.

    y = f(x) + b'        b': (width,), 0 at the start

For a layer with a bias b, training b' is equivalent to training b, because the two add up. A layer without a bias gets one.
The backbone's own bias stays as it is, so the delta can be removed without a trace.

Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning", https://arxiv.org/abs/2106.10199
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.deltas.precision import added
from deltahub.engine.insertion import Args, Insertion, Kwargs, map_hidden
from deltahub.engine.layers import bias_fault
from deltahub.engine.shapes import channel_dimension, is_conv1d
from deltahub.engine.site import CHILD, is_delta_name
from deltahub.engine.structure.targets import Target
from deltahub.errors import MergeError, TargetError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class BitFitConfig(DeltaConfig):
    """Options of BitFit, which has none of its own."""

    delta_type: ClassVar[str] = "bitfit"


class BiasOffset(Insertion):
    """An insertion that adds a bias to the hidden state of a layer's output.

    Args:
        like: a tensor with the dtype and device of the new parameter.
        width: size of the bias.
        channel: the dimension of the output that the bias belongs to; for a convolution it is not the last.
    """

    def __init__(self, like: Tensor, width: int, channel: int = -1) -> None:
        super().__init__()
        self.channel = channel
        self.bias = nn.Parameter(like.new_zeros(width))

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the hidden state, ``(..., width)``, or ``(..., width, *spatial)`` after a convolution or batch norm."""
        return map_hidden(output, self._change)

    def _change(self, hidden: Tensor) -> Tensor:
        after = hidden.dim() - 1 - self.channel if self.channel >= 0 else -1 - self.channel
        return added(hidden, self.bias.view(-1, *[1] * after))

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's bias with the new one added."""
        bias = getattr(target, "bias", None)
        if not isinstance(bias, Tensor) or bias.shape != self.bias.shape:
            raise MergeError("it has no bias of its own to add to")
        if fault := bias_fault(target):
            raise MergeError(fault)
        wide = torch.promote_types(bias.dtype, torch.float32)
        return {"bias": bias.to(wide) + self.bias}


class BitFitModel(DeltaBase):
    """Trained biases in every addressed layer, and in every layer with a bias inside an addressed module.

    Args:
        backbone_model: the model to modify.
        modified_modules: addresses of layers, or of modules that contain some.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        backend: only ``"hf"``.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "bitfit"
    config_class = BitFitConfig
    default_modified_modules = ("attn@", "ff@", "layer_norm@", "lm_head@.proj@")

    def __init__(
        self,
        backbone_model: nn.Module,
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
        config = BitFitConfig(
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
        """Return the addressed layers, and the layers inside the addressed modules, each once."""
        chosen: dict[str, Target] = {}
        for target in targets:
            layers = list(_layers(target))
            if not layers:
                msg = f"{target.name} is a {type(target.module).__name__} without a layer that has a bias inside."
                raise TargetError(msg)
            for layer in layers:
                chosen.setdefault(layer.name, layer)
        return list(chosen.values())

    @classmethod
    def new_insertion(cls, config: BitFitConfig, target: Target, width: int, like: Tensor) -> BiasOffset:
        """Build a new bias for one layer."""
        channel = channel_dimension(target.module)
        return BiasOffset(like, width, -1 if channel is None else channel)


def _layers(target: Target) -> Iterator[Target]:
    if not any(name != CHILD for name, _ in target.module.named_children()):
        yield target  # a leaf module of any kind gets a bias
        return
    has_layer = False
    for name, module in target.module.named_modules():
        bias = getattr(module, "bias", None)
        # a causal mask can be called bias too, and a bias with two dimensions does not have one value per channel
        biased = isinstance(bias, Tensor) and bias.is_floating_point() and bias.dim() == 1
        if (biased or isinstance(module, nn.Linear) or is_conv1d(module)) and not is_delta_name(name):
            has_layer = True
            yield Target(f"{target.name}.{name}" if name else target.name, module)
    if not has_layer and next(target.module.parameters(), None) is not None:
        yield target  # experts stored as one tensor each: the bias is added to their output
