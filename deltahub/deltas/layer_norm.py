"""LayerNorm tuning: only the scales and shifts of normalisation layers are trained.

    y = n (w + w') + (b + b')        n: the normalised input, w', b': (width,), 0 at the start

A layer without a shift of its own (RMSNorm) gets none. The backbone's own w and b stay as they are.

Zhao et al. 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", https://arxiv.org/abs/2312.11420
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.config import DeltaConfig
from deltahub.deltas.precision import added
from deltahub.engine.delta import DeltaBase
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.modules import own_modules
from deltahub.engine.offloading import resident
from deltahub.engine.structure.targets import Target
from deltahub.errors import TargetError

_TOLERANCE: Final = 0.05  # of a normalised value, so that bfloat16 passes and another formula does not


@dataclass(frozen=True, kw_only=True)
class LayerNormConfig(DeltaConfig):
    """LayerNorm tuning has no options of its own."""

    delta_type: ClassVar[str] = "layer_norm"


class NormOffset(Insertion):
    """Trained offsets of a normalisation layer's scale and shift.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        layer: the layer.
    """

    def __init__(self, like: Tensor, layer: nn.Module) -> None:
        super().__init__()
        self.centred = _is_centred(layer)
        self.eps = _eps(layer)
        self.weight = nn.Parameter(like.new_zeros(_weight(layer).shape))
        self.bias = nn.Parameter(like.new_zeros(_weight(layer).shape)) if _bias(layer) is not None else None

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Output tensor with shape ``(..., width)``."""
        n = _normalised(first_input(args, kwargs), self.centred, self.eps)
        return added(output, n * self.weight if self.bias is None else n * self.weight + self.bias)

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """The layer's own scale and shift with the offsets added."""
        own = {"weight": (_weight(target), self.weight), "bias": (_bias(target), self.bias)}
        return {
            key: value.to(torch.promote_types(value.dtype, torch.float32)) + offset
            for key, (value, offset) in own.items()
            if value is not None and offset is not None
        }


def _weight(layer: nn.Module) -> Tensor:
    return cast("Tensor", resident(layer, "weight"))


def _bias(layer: nn.Module) -> Tensor | None:
    return cast("Tensor | None", resident(layer, "bias"))


def _eps(layer: nn.Module) -> float:
    found = (getattr(layer, name, None) for name in ("eps", "variance_epsilon", "epsilon", "norm_eps"))
    return next((float(value) for value in found if isinstance(value, float)), 1e-6)


def _is_centred(layer: nn.Module) -> bool:
    """Whether the mean is taken off, as LayerNorm does and RMSNorm does not."""
    return isinstance(layer, nn.LayerNorm) or not ("RMS" in type(layer).__name__ or _agrees(layer, centred=False))


def _normalised(x: Tensor, centred: bool, eps: float) -> Tensor:
    """The input, in float32 or wider, with mean 0 and variance 1, or with mean square 1, over the last dimension."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if centred:
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer is a LayerNorm or an RMSNorm with a scale: by its class, and by what it makes of a random input."""
    weight = resident(layer, "weight")
    if (
        not isinstance(layer._parameters.get("weight"), nn.Parameter)
        or weight.dim() != 1
        or "Norm" not in type(layer).__name__
    ):
        return False
    if weight.is_meta:
        return isinstance(layer, nn.LayerNorm) or "RMS" in type(layer).__name__ or "LayerNorm" in type(layer).__name__
    return _agrees(layer, centred=True) or _agrees(layer, centred=False)


@torch.no_grad()
def _agrees(layer: nn.Module, *, centred: bool) -> bool:
    weight, bias = _weight(layer), _bias(layer)
    if weight.is_meta:
        return not centred
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, weight.shape[0], generator=draw).to(weight) + 0.5  # a mean, to tell the two kinds apart
    try:
        found = layer.forward(x)
    except Exception:  # noqa: BLE001  # a layer that cannot be called so is no norm
        return False
    if not isinstance(found, Tensor) or found.shape != x.shape:
        return False
    shift = 0 if bias is None else bias
    n = _normalised(x, centred, _eps(layer))
    # Gemma's norms keep their scale as 1 + w; an offset of w does the same to both.
    expected = (n * weight + shift, n * (1 + weight) + shift)
    return any(bool((found - e).abs().max() <= _TOLERANCE * e.abs().max().clamp(min=1e-3)) for e in expected)


class LayerNormModel(DeltaBase):
    """Trained normalisation layers: those addressed, and those inside the modules addressed; by default all of the blocks.

    Args:
        backbone_model: the model to modify.
        modified_modules: addresses of LayerNorms and RMSNorms, or of modules that contain some.
        exclude_modules: addresses of what is left out.
        unfrozen_modules: what `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a port, to choose the modules on a web page.
        name: the delta's name on this backbone.
        dtype: of the parameters; by default float32, or the layer's where it is wider.
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
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = LayerNormConfig.from_dict(
            {
                "modified_modules": modified_modules,
                "exclude_modules": exclude_modules,
                "unfrozen_modules": unfrozen_modules,
                "common_structure": common_structure,
            }
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """The norms addressed, and the norms inside the modules addressed, each once."""
        chosen: dict[str, Target] = {}
        for target in targets:
            found = list(_norms(target))
            if not found:
                msg = (
                    f"{target.name} is a {type(target.module).__name__}: neither a LayerNorm or RMSNorm with a scale nor a "
                    "module that contains one. Address a norm, e.g. modified_modules=['layer_norm']."
                )
                raise TargetError(msg)
            for norm in found:
                chosen.setdefault(norm.name, norm)
        return list(chosen.values())

    @classmethod
    def new_insertion(cls, config: LayerNormConfig, target: Target, width: int, like: Tensor) -> NormOffset:
        """Fresh offsets for one norm."""
        return NormOffset(like, target.module)


def _norms(target: Target) -> Iterator[Target]:
    for name, module in own_modules(target.module):
        if is_norm(module):
            yield Target(f"{target.name}.{name}" if name else target.name, module)
