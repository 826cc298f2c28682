"""IA3: learned vectors that rescale keys, values and the inner activations of the feed-forward.

    k' = l_k * k      v' = l_v * v      y = W_2 (l_ff * h)        l: (width,), 1 at the start

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
https://arxiv.org/abs/2205.05638
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig, as_names
from deltahub.checkpoint.options import Text
from deltahub.engine.building import Like, addressed
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input, with_first_input
from deltahub.engine.layers import linear_fault, update_fault
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.engine.weights import as_stored, linear_bias, linear_weight
from deltahub.errors import MergeError, NoMatchError, TargetError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class IA3Config(DeltaConfig):
    """Options of IA3: the layers that are rescaled at their input.

    Args:
        feedforward_modules: addresses of those modified modules whose input is rescaled, not their output.
    """

    feedforward_modules: Sequence[Text] = ("ff@.w2@",)

    delta_type: ClassVar[str] = "ia3"

    def __post_init__(self) -> None:
        object.__setattr__(self, "feedforward_modules", as_names("feedforward_modules", self.feedforward_modules))
        super().__post_init__()


class ScaledOutput(Insertion):
    """An insertion that multiplies the output of a linear layer.

    Args:
        like: a tensor with the dtype and device of the new parameter.
        width: size of the multiplied tensor's last dimension.
    """

    def __init__(self, like: Tensor, width: int) -> None:
        super().__init__()
        self.ia3_l = nn.Parameter(like.new_ones(width))

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Scale the output tensor, ``(..., width)``."""
        return (output * self.ia3_l).to(output.dtype)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the weight with each row, and the bias with each value, multiplied by its factor."""
        if fault := linear_fault(target):
            raise MergeError(fault)
        weight, bias = linear_weight(target), linear_bias(target)
        wide = torch.promote_types(weight.dtype, torch.float32)
        factor = self.ia3_l.to(wide)
        values = {"weight": as_stored(target, weight.to(wide) * factor[:, None])}
        return values if bias is None else {**values, "bias": bias.to(wide) * factor}


class ScaledInput(ScaledOutput):
    """An insertion that multiplies the input of a linear layer."""

    def before(self, target: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        """Scale the input tensor, ``(..., width)``."""
        x = first_input(args, kwargs)
        return with_first_input(args, kwargs, (x * self.ia3_l).to(x.dtype))

    after = Insertion.after

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the weight with each column multiplied by its factor."""
        if fault := linear_fault(target):
            raise MergeError(fault)
        weight = linear_weight(target)
        wide = torch.promote_types(weight.dtype, torch.float32)
        return {"weight": as_stored(target, weight.to(wide) * self.ia3_l.to(wide))}


class IA3Model(DeltaBase):
    """IA3 vectors; by default at the k and v projections of self-attention and the second matrix of the feed-forward.

    Args:
        backbone_model: the model to modify.
        modified_modules: addresses of linear layers.
        feedforward_modules: addresses of those layers whose input is rescaled; by default the feed-forward's.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "ia3"
    config_class = IA3Config
    default_modified_modules = ("attn@.k@", "attn@.v@", "ff@.w2@")

    def __init__(
        self,
        backbone_model: nn.Module,
        modified_modules: Sequence[str] | None = None,
        feedforward_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = IA3Config(
            feedforward_modules=IA3Config.feedforward_modules if feedforward_modules is None else feedforward_modules,
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that all modules are linear layers; experts without any are left out if other modules are addressed too."""
        targets = [target for target in targets if not target.stands_in] or targets
        for target in targets:
            linear_shape(target.name, target.module)
            if isinstance(target.module, nn.Embedding):
                msg = f"{target.name} is an Embedding; IA3 rescales linear layers. Address a Linear or a Conv1D."
                raise TargetError(msg)
            if fault := update_fault(target.module):
                msg = f"{target.name} ({type(target.module).__name__}) cannot be rescaled: {fault}. Leave it out."
                raise TargetError(msg)
        return targets

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: IA3Config, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build one vector for each layer: at the input of the feed-forward's, at the output of the others."""
        inner = _inputs_of(cls, backbone, config)
        outer = [target for target in targets if target.name not in inner]
        insertions = dict(super().new_insertions(backbone, config, outer, like))
        for target in targets:
            if target.name in inner:
                n_in, _ = linear_shape(target.name, target.module)
                insertions[target.name] = ScaledInput(like(target.module), n_in)
        return {target.name: insertions[target.name] for target in targets}

    @classmethod
    def new_insertion(cls, config: IA3Config, target: Target, width: int, like: Tensor) -> ScaledOutput:
        """Build a new vector for one layer, or for some rows of a fused one."""
        return ScaledOutput(like, width)


def _inputs_of(method: type[DeltaBase], backbone: nn.Module, config: IA3Config) -> set[str]:
    """Return the layers whose input is rescaled; the default addresses may match none."""
    names: set[str] = set()
    for pattern in config.feedforward_modules:
        try:
            names |= {t.name for t in addressed(method, backbone, replace(config, modified_modules=(pattern,)))}
        except (NoMatchError, TargetError):  # experts may have no layers of their own
            if pattern not in IA3Config.feedforward_modules:
                raise
    return names
