"""LayerNorm tuning: only the scales and shifts of normalisation layers are trained.

    y = n (w + w') + (b + b')        n: the normalised input, w', b': (width,), 0 at the start

A layer without a shift of its own (RMSNorm) gets none. The backbone's own w and b stay as they are.

Zhao et al. 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", https://arxiv.org/abs/2312.11420
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.deltas.precision import added
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.layers import norm_form
from deltahub.engine.modules import own_modules
from deltahub.engine.offloading import resident
from deltahub.engine.structure.targets import Target
from deltahub.errors import TargetError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class LayerNormConfig(DeltaConfig):
    """Options of LayerNorm tuning, which has none of its own."""

    delta_type: ClassVar[str] = "layer_norm"


class NormOffset(Insertion):
    """An insertion with trained offsets of a normalisation layer's scale and shift.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        layer: the normalisation layer.
    """

    def __init__(self, like: Tensor, layer: nn.Module) -> None:
        super().__init__()
        form = norm_form(layer)
        assert form is not None  # `choose` accepts no other
        self.form = form
        self.weight = nn.Parameter(like.new_zeros(_weight(layer).shape))
        self.bias = nn.Parameter(like.new_zeros(_weight(layer).shape)) if _bias(layer) is not None else None

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the effect of the offsets to the output tensor, ``(..., width)``."""
        n = self.form.normalised(first_input(args, kwargs))
        return added(output, n * self.weight if self.bias is None else n * self.weight + self.bias)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's own scale and shift with the offsets added."""
        pairs = {"weight": (_weight(target), self.weight), "bias": (_bias(target), self.bias)}
        return {
            key: value.to(torch.promote_types(value.dtype, torch.float32)) + offset
            for key, (value, offset) in pairs.items()
            if value is not None and offset is not None
        }


def _weight(layer: nn.Module) -> Tensor:
    return cast("Tensor", resident(layer, "weight"))


def _bias(layer: nn.Module) -> Tensor | None:
    return cast("Tensor | None", resident(layer, "bias"))


class LayerNormModel(DeltaBase):
    """Trained normalisation layers: the addressed ones, and those inside addressed modules; by default all in the blocks.

    Args:
        backbone_model: the model to modify.
        modified_modules: addresses of LayerNorms and RMSNorms, or of modules that contain some.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "layer_norm"
    config_class = LayerNormConfig
    default_modified_modules = ("layer_norm@",)

    def __init__(
        self,
        backbone_model: nn.Module,
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
        config = LayerNormConfig(
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Return the addressed norms, and the norms inside the addressed modules, each once."""
        chosen: dict[str, Target] = {}
        for target in targets:
            norms = list(_norms(target))
            if not norms:
                msg = (
                    f"{target.name} is a {type(target.module).__name__}: neither a LayerNorm or RMSNorm with a scale nor a "
                    "module that contains one (a gated norm, say, computes something else). Address a norm, e.g. modified_modules=['layer_norm']."
                )
                raise TargetError(msg)
            for norm in norms:
                chosen.setdefault(norm.name, norm)
        return list(chosen.values())

    @classmethod
    def new_insertion(cls, config: LayerNormConfig, target: Target, width: int, like: Tensor) -> NormOffset:
        """Build new offsets for one norm."""
        return NormOffset(like, target.module)


def _norms(target: Target) -> Iterator[Target]:
    for name, module in own_modules(target.module):
        if norm_form(module) is not None:
            yield Target(f"{target.name}.{name}" if name else target.name, module)
