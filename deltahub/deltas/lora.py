"""LoRA: a low-rank update beside a linear layer.

    y = W x + s B A x        A: (r, n_in), B: (n_out, r), B = 0 at the start; s = alpha / r

    rsLoRA  s = alpha / sqrt(r)
    DoRA    y = m * (W + s B A) x / ||W + s B A||           m, ||.||: (n_out,), the norm of each row; m = ||W|| at the start

As its authors advise (section 4.3), no gradient goes through DoRA's norm.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685
Kalajdzievski 2023, rsLoRA, https://arxiv.org/abs/2312.03732
Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", https://arxiv.org/abs/2402.09353
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Annotated, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from deltahub.checkpoint.address import Address, value_for
from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits
from deltahub.deltas.precision import added, widened
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.layers import embed_scale, linear_fault, lookup_fault, reading_fault, update_fault, weight_fault
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.engine.weights import as_stored, linear_bias, linear_weight
from deltahub.errors import ConfigError, MergeError, NoMatchError, TargetError
from deltahub.handle.base import DeltaBase
from deltahub.text.suggestions import closest


class LowRankUpdate(Insertion):
    """An insertion that adds ``scale * B A x`` to the output of a linear layer.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
        rank: width in between.
        scale: factor of the update.
        dropout: share of the input dropped in training.
        bias: whether B has a bias, scaled like the update.
    """

    def __init__(
        self,
        like: Tensor,
        n_in: int,
        n_out: int,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.lora_A = nn.Parameter(like.new_empty(rank, n_in))
        self.lora_B = nn.Parameter(like.new_empty(n_out, rank))
        self.lora_bias = nn.Parameter(like.new_zeros(n_out)) if bias else None
        if not like.is_meta:
            self.reset()

    def reset(self) -> None:
        """Initialise A like a linear layer's weight; B is zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def low_rank(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute ``A x`` in a given precision: input tensor with shape ``(..., n_in)``, output ``(..., r)``."""
        x = x.to(dtype)
        return F.linear(x if self.dropout is None else self.dropout(x), self.lora_A.to(dtype))

    def precision(self, output: Tensor) -> torch.dtype:
        """Return the wider of the precisions of the parameters and of a hidden state."""
        return torch.promote_types(output.dtype, self.lora_A.dtype)

    def update(self, x: Tensor, output: Tensor) -> Tensor:
        """Compute ``s B A x``, ``(..., n_out)``, in the wider of the precisions of the parameters and of `output`."""
        dtype = self.precision(output)
        bias = None if self.lora_bias is None else self.lora_bias.to(dtype)
        return self.scale * F.linear(self.low_rank(x, dtype), self.lora_B.to(dtype), bias)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the output tensor, ``(..., n_out)``."""
        return added(output, self.update(first_input(args, kwargs), output))

    @classmethod
    def after_rows(cls, members: tuple[Self, ...], target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Compute all rows with two stacked products; lower ranks are padded.

        The input has shape ``(rows, length, n_in)``, the output ``(rows, length, n_out)``.
        """
        if any((member.dropout is not None and member.training) or member.lora_bias is not None for member in members):
            return NotImplemented
        # `_parameters[...]`, not attributes: for many rows nn.Module.__getattr__ would be a fifth of the cost.
        downs = [cast("Tensor", member._parameters["lora_A"]) for member in members]
        ups = [cast("Tensor", member._parameters["lora_B"]) for member in members]
        widest = max(map(len, downs))
        if min(map(len, downs)) < widest:
            downs = [F.pad(down, (0, 0, 0, widest - len(down))) for down in downs]
            ups = [F.pad(up, (0, widest - up.shape[1])) for up in ups]
        dtype = reduce(torch.promote_types, {down.dtype for down in downs}, output.dtype)
        downs, ups = ([side.to(dtype) for side in sides] for sides in (downs, ups))
        x = first_input(args, kwargs).to(dtype)
        low = torch.bmm(x.reshape(len(members), -1, x.shape[-1]), torch.stack(downs).mT)
        scales = [member.scale for member in members]
        scale = scales[0] if len({*scales}) == 1 else low.new_tensor(scales).view(-1, 1, 1)
        update = torch.bmm(scale * low, torch.stack(ups).mT)
        return added(output, update.view(output.shape))

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's weight with the update added, and its bias with that of B."""
        values = {"weight": as_stored(target, self._sum(target))}
        if self.lora_bias is None:
            return values
        if (bias := linear_bias(target)) is None:
            raise MergeError("it has no bias of its own to add to")
        return {**values, "bias": bias.to(values["weight"].dtype) + self.scale * self.lora_bias}

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the update cannot be merged into the layer's weight: a clause, empty if it can."""
        return linear_fault(target)

    def _sum(self, target: nn.Module) -> Tensor:
        """Return ``W + s B A`` as ``(n_out, n_in)``, in float32 or wider."""
        if self.dropout is not None and self.training:
            raise MergeError("its dropout is on in training mode, so call eval() on the backbone before")
        if fault := self.merge_fault(target):
            raise MergeError(fault)
        weight = linear_weight(target)
        wide = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(wide) + self.scale * (self.lora_B.to(wide) @ self.lora_A.to(wide))


class LowRankKernel(LowRankUpdate):
    """A low-rank update of a convolution: A is a convolution to r channels, B mixes them."""

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the output tensor, ``(batch, n_out, *spatial)``."""
        layer, dtype = cast("_ConvNd", target), self.precision(output)
        x = first_input(args, kwargs).to(dtype)
        x = x if self.dropout is None else self.dropout(x)
        low = layer._conv_forward(x, self.lora_A.to(dtype).view(-1, *layer.weight.shape[1:]), None)
        channel = low.dim() - 1 - len(layer.kernel_size)
        bias = None if self.lora_bias is None else self.lora_bias.to(dtype)
        update = F.linear(low.movedim(channel, -1), self.lora_B.to(dtype), bias).movedim(-1, channel)
        return added(output, self.scale * update)

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the update cannot be merged into the kernel: a clause, empty if it can."""
        return weight_fault(target)


class LowRankRows(LowRankUpdate):
    """A low-rank update of an embedding, whose inputs are row numbers; A starts at zero, as in the authors' own code.

    If an embedding multiplies its rows by an `embed_scale`, the update is multiplied too, because it belongs to the weight.
    """

    def reset(self) -> None:
        """Initialise B with normally distributed values; A is zero."""
        nn.init.zeros_(self.lora_A)
        nn.init.normal_(self.lora_B)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update of the input's indices, ``(...)``, to the output tensor, ``(..., n_out)``."""
        table = cast("nn.Embedding", target)
        rows = F.embedding(
            first_input(args, kwargs),
            self.lora_A.T,
            padding_idx=table.padding_idx,
            scale_grad_by_freq=table.scale_grad_by_freq,
        )
        wide = torch.promote_types(output.dtype, self.lora_A.dtype)
        update = self.scale * F.linear(rows.to(wide), self.lora_B.to(wide))
        if (scale := embed_scale(table)) is not None:
            update = update * (scale.to(update) if isinstance(scale, Tensor) else scale)
        return added(output, update)

    def merge_fault(self, target: nn.Module) -> str:
        """Return why the update cannot be merged into the table: a clause, empty if it can."""
        return reading_fault(target) or lookup_fault(cast("nn.Embedding", target))


class DecomposedUpdate(LowRankUpdate):
    """DoRA: a low-rank update of a weight's direction, and a trained magnitude of each row.

    Args:
        layer: the linear layer, whose rows give the initial magnitudes.
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
        """Return the norm of each row of ``W + s B A``, ``(n_out,)``."""
        weight = widened(linear_weight(layer), self.lora_A)
        update = (self.lora_B.to(weight.dtype) @ self.lora_A.to(weight.dtype)).to(weight.dtype)  # autocast narrows it
        norm: Tensor = torch.linalg.vector_norm(weight + self.scale * update, dim=1)
        return norm

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the output tensor, ``(..., n_out)``: the linear part computed by `target` is scaled, its bias is not."""
        gain = self.lora_magnitude_vector / self._norm(target)
        x, bias, dtype = first_input(args, kwargs), linear_bias(target), self.precision(output)
        linear = output if bias is None else output - bias
        if self.dropout is not None and self.training:  # as in PEFT, the rescaled part has the same dropout
            x = self.dropout(x.to(dtype))
            linear = F.linear(x, linear_weight(target).to(dtype))
        low = F.linear(x.to(dtype), self.lora_A.to(dtype))
        return added(output, (gain - 1) * linear + gain * self.scale * F.linear(low, self.lora_B.to(dtype)))

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the layer's weight with its new direction and magnitude."""
        weight = self._sum(target)
        gain = self.lora_magnitude_vector.to(weight.dtype) / torch.linalg.vector_norm(weight, dim=1)
        return {"weight": as_stored(target, gain[:, None] * weight)}


@dataclass(frozen=True, kw_only=True)
class LoraConfig(DeltaConfig):
    """Options of LoRA: the size and the scale of the update.

    Args:
        lora_r: rank of the update, at least 1.
        lora_alpha: the update is scaled by ``lora_alpha / lora_r``.
        lora_dropout: share of the input dropped in training, from 0 to less than 1.
        use_rslora: scale by ``lora_alpha / sqrt(lora_r)`` instead.
        use_dora: decompose the weight into magnitude and direction (`LowRankUpdate`).
        use_bias: B has a bias, scaled like the update; that of an embedding has none.
        rank_pattern: ranks of single modules, by real address, instead of `lora_r`; the first address that matches a module counts.
        alpha_pattern: the same for `lora_alpha`.
    """

    lora_r: Count = 8
    lora_alpha: float = 16
    lora_dropout: Annotated[float, Limits(minimum=0, exclusiveMaximum=1)] = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    use_bias: bool = False
    rank_pattern: Mapping[str, Count] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    delta_type: ClassVar[str] = "lora"

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types; what is off and unknown to older releases is left out."""
        document = super().to_dict()
        for key, off in {"rank_pattern": {}, "alpha_pattern": {}, "use_bias": False}.items():
            if document[key] == off and isinstance(document[key], type(off)):
                del document[key]
        return document

    @property
    def scale(self) -> float:
        """The factor of the update where no pattern sets another."""
        return self._scale(self.lora_r, self.lora_alpha)

    def sizes(self, module: str) -> tuple[int, float]:
        """Return the rank and the factor of a module's update."""
        rank = value_for(self.rank_pattern, module, self.lora_r)
        return rank, self._scale(rank, value_for(self.alpha_pattern, module, self.lora_alpha))

    def _scale(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


class LoraModel(DeltaBase):
    """LoRA at every addressed linear layer; by default the q and v projections of self-attention.

    Args:
        backbone_model: the model to modify.
        lora_r: rank of the update, at least 1.
        lora_alpha: the update is scaled by ``lora_alpha / lora_r``.
        lora_dropout: share of the input dropped in training.
        modified_modules: addresses of linear layers, Conv1D layers, convolutions or embeddings.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        exclude_modules: addresses of modules to leave out.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        backend: only ``"hf"``.
        use_rslora: scale by ``lora_alpha / sqrt(lora_r)`` instead.
        use_dora: decompose the weight into magnitude and direction.
        use_bias: B has a bias, scaled like the update; that of an embedding has none.
        rank_pattern: ranks of single modules, by real address, instead of `lora_r`.
        alpha_pattern: the same for `lora_alpha`.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "lora"
    config_class = LoraConfig
    default_modified_modules = ("attn@.q@", "attn@.v@")

    def __init__(
        self,
        backbone_model: nn.Module,
        lora_r: int = 8,
        lora_alpha: float = 16,
        lora_dropout: float = 0.0,
        modified_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        *,
        use_rslora: bool = False,
        use_dora: bool = False,
        use_bias: bool = False,
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, float] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = LoraConfig(
            lora_r=lora_r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            use_rslora=use_rslora,
            use_dora=use_dora,
            use_bias=use_bias,
            rank_pattern=dict(rank_pattern or {}),
            alpha_pattern=dict(alpha_pattern or {}),
            modified_modules=modified_modules,
            unfrozen_modules=unfrozen_modules,
            exclude_modules=exclude_modules,
            common_structure=common_structure,
        )
        super().__init__(
            backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify, backend=backend
        )

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that each module is a linear layer, a convolution or an embedding that can hold a LoRA."""
        for target in targets:
            module = target.module
            if isinstance(module, _ConvNd):
                fault = weight_fault(module) or ("" if module.groups == 1 else "its channels are in groups")
            else:
                linear_shape(target.name, module)
                fault = lookup_fault(module) if isinstance(module, nn.Embedding) else update_fault(module)
            if fault:
                msg = f"{target.name} ({type(module).__name__}) cannot hold a LoRA: {fault}. Leave it out."
                raise TargetError(msg)
        return targets

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: Any, targets: Sequence[Target], like: Callable[[nn.Module], Tensor]
    ) -> Mapping[str, Insertion]:
        """Build an update for each target.

        Raises:
            NoMatchError: an address of a pattern matches no module of the delta.
        """
        names = [target.name for target in targets]
        for pattern in (*config.rank_pattern, *config.alpha_pattern):
            if not any(pattern == name or Address(pattern).matches(name) for name in names):
                raise NoMatchError(pattern, closest(pattern, names), "It is in rank_pattern or alpha_pattern.")
        return super().new_insertions(backbone, config, targets, like)

    @classmethod
    def new_insertion(cls, config: LoraConfig, target: Target, width: int, like: Tensor) -> LowRankUpdate:
        """Build a new update for one layer, or for `width` rows of a fused one."""
        sizes, module = (*config.sizes(target.name), config.lora_dropout), target.module
        kind: type[LowRankUpdate]
        if isinstance(module, _ConvNd):
            n_in, kind = math.prod(module.weight.shape[1:]), LowRankKernel
        else:
            n_in = linear_shape(target.name, module)[0]
            kind = LowRankRows if isinstance(module, nn.Embedding) else LowRankUpdate
        if not config.use_dora:
            return kind(like, n_in, width, *sizes, bias=config.use_bias and kind is not LowRankRows)
        if config.use_bias:
            msg = "A DoRA has no bias of B. Set use_dora or use_bias to False."
            raise ConfigError(msg)
        if kind is not LowRankUpdate:
            msg = f"{target.name} is a {type(module).__name__}; DoRA acts on linear layers. Leave it out, or leave use_dora off."
            raise TargetError(msg)
        if fault := linear_fault(module):
            msg = f"{target.name} cannot hold a DoRA, which reads the layer's weight: {fault}. Leave use_dora off."
            raise TargetError(msg)
        return DecomposedUpdate(like, module, n_in, width, *sizes)
