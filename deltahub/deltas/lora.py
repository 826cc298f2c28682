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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deltahub.checkpoint.address import value_for
from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits, Text
from deltahub.deltas.eva import initialise_eva
from deltahub.deltas.lora_attention import attention_fault, attention_update, with_projections
from deltahub.deltas.lora_init import DEFAULT, AnchoredUpdate, check_initialisation, initialise, is_anchored, plain_form
from deltahub.deltas.lora_layers import DecomposedUpdate, LowRankKernel, LowRankRows, LowRankUpdate
from deltahub.deltas.lora_parameters import parameter_insertions, read_by_parent, with_matrices
from deltahub.deltas.slots import LoraSlots
from deltahub.deltas.target_checks import refuse_unmatched
from deltahub.engine.bypassed import parameter_fault
from deltahub.engine.insertion import Insertion
from deltahub.engine.layers import linear_fault, lookup_fault, update_fault, weight_fault
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError, DeltaHubError, TargetError
from deltahub.handle.base import DeltaBase


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
        share_experts: one A and B for all experts of a layer, where the update is of a stack of experts.
        init_lora_weights: the initialisation (`deltahub.deltas.lora_init`): True or ``"default"``, ``"gaussian"``, ``"orthogonal"``,
            ``"pissa"``, ``"pissa_niter_N"`` or ``"olora"``. It is not saved, because it matters only at the start.

    Raises:
        ConfigError: the value of an option is invalid, or the initialisation needs data.
    """

    lora_r: Count = 8
    lora_alpha: float = 16
    lora_dropout: Annotated[float, Limits(minimum=0, exclusiveMaximum=1)] = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    use_bias: bool = False
    rank_pattern: Mapping[str, Count] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    share_experts: bool = False
    init_lora_weights: Text = DEFAULT

    delta_type: ClassVar[str] = "lora"

    def __post_init__(self) -> None:
        start: Any = self.init_lora_weights
        if start is True:  # as in PEFT
            object.__setattr__(self, "init_lora_weights", DEFAULT)
        super().__post_init__()
        check_initialisation(self.init_lora_weights)

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types; what is off and unknown to older releases is left out."""
        document = super().to_dict()
        for key, off in {
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_bias": False,
            "share_experts": False,
            "init_lora_weights": DEFAULT,
        }.items():
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
        modified_modules: addresses of linear layers, Conv1D layers, convolutions, embeddings, or an `nn.MultiheadAttention` or its
            q, k, v or proj; and of parameters that a module reads itself, such as stacks of experts (``"experts.w1"``,
            ``"mlp.experts.down_proj"``) and routers.
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
        init_lora_weights: the initialisation: see `LoraConfig`.
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
        share_experts: one A and B for all experts of a layer; by default one for each.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "lora"
    config_class = LoraConfig
    default_modified_modules = ("attn@.q@", "attn@.v@")
    acts_on_projections = True
    takes_parameters = True

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
        init_lora_weights: bool | str = True,
        layers_to_transform: Sequence[int] | None = None,
        share_experts: bool = False,
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
            share_experts=share_experts,
            init_lora_weights=cast("str", init_lora_weights),
            modified_modules=modified_modules,
            unfrozen_modules=unfrozen_modules,
            exclude_modules=exclude_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
        )
        super().__init__(
            backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify, backend=backend
        )

    def reserve(
        self, slots: int = 8, rank: int = 16, *, name: str | None = None, dtype: torch.dtype | None = None
    ) -> LoraSlots:
        """Reserve slots at the modules of this delta, and copy it into the first one; the delta itself is detached.

        From then on LoRAs are exchanged, selected, scaled and routed in the slots without recompiling the backbone (`LoraSlots`).

        Args:
            slots: number of LoRAs that have room, at least 1.
            rank: the largest rank of a LoRA, at least 1.
            name: the name of the slots on this backbone.
            dtype: dtype of the slots; by default float32, or the layer's if wider.

        Raises:
            ConfigError, TargetError: the delta does not fit into a slot (`LoraSlots.load`). Nothing was changed.
            MergeError: deltas are merged.
            RouteError: a route is open.
        """
        self.check_places()
        reserved = LoraSlots(
            self.backbone_model, slots, rank, [*self.insertions], (), common_structure=False, name=name, dtype=dtype
        )
        try:
            reserved.load(self.name, self)
        except DeltaHubError:
            reserved.remove()
            raise
        if self.attached:
            self.detach()
            reserved.select(self.name)
        return reserved

    @classmethod
    def plan(cls, backbone: nn.Module, config: Any) -> list[Target]:
        """Return the modules to act on; the output layer of an `nn.MultiheadAttention` is a part of that."""
        return with_projections(backbone, super().plan(backbone, config))

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that each module is a layer that can hold a LoRA; a mixture of experts or a router stands for its matrices."""
        chosen = [part for target in targets for part in with_matrices(target)]
        for target in chosen:
            module = target.module
            if target.stands_in:
                fault = "it is a mixture of experts, whose matrices are addressed as experts.w1, experts.gate and experts.w2"
            elif target.parameter:
                fault = parameter_fault(module, target.parameter)
            elif isinstance(module, _ConvNd):
                fault = weight_fault(module)
            elif isinstance(module, nn.MultiheadAttention):
                fault = attention_fault(module)
            else:
                linear_shape(target.name, module)
                fault = lookup_fault(module) if isinstance(module, nn.Embedding) else update_fault(module)
            if fault:
                msg = f"{target.address} ({type(module).__name__}) cannot hold a LoRA: {fault}. Leave it out."
                raise TargetError(msg)
        return chosen

    @classmethod
    def read_by_parent(cls, backbone: nn.Module, target: Target) -> Target | None:
        """Return the weight of a layer that is never called as a parameter of the module that reads it; None if that cannot be done."""
        return read_by_parent(backbone, target)

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: Any, targets: Sequence[Target], like: Callable[[nn.Module], Tensor]
    ) -> Mapping[str, Insertion]:
        """Build an update for each target.

        Raises:
            NoMatchError: an address of a pattern matches no module of the delta.
        """
        names = [target.address for target in targets]
        refuse_unmatched((*config.rank_pattern, *config.alpha_pattern), "rank_pattern or alpha_pattern", names)
        if config.share_experts and not any(target.parameter for target in targets):
            raise ConfigError("share_experts is for stacks of experts, and the delta is on none. Leave it out.")
        attentions = {t.name for t in targets if isinstance(t.module, nn.MultiheadAttention) and not t.parameter}
        layers = [target for target in targets if target.name not in attentions and not target.parameter]
        if config.init_lora_weights != DEFAULT and len(layers) < len(targets):
            odd = next(target.name for target in targets if target not in layers)
            msg = f"init_lora_weights={config.init_lora_weights!r} is for layers, and the LoRA at {odd} is of parameters that a module reads itself. Leave it out."
            raise TargetError(msg)
        updates = dict(super().new_insertions(backbone, config, layers, like))
        updates |= {t.name: attention_update(config, t, like(t.module)) for t in targets if t.name in attentions}
        updates |= parameter_insertions(config, [target for target in targets if target.parameter], updates, like)
        return {target.name: updates[target.name] for target in targets}

    @classmethod
    def new_insertion(cls, config: LoraConfig, target: Target, width: int, like: Tensor) -> LowRankUpdate:
        """Build a new update for one layer, or for `width` rows of a fused one."""
        insertion = cls._new_update(config, target, width, like)
        if config.init_lora_weights != DEFAULT and not like.is_meta and not isinstance(insertion, LowRankRows):
            initialise(insertion, config.init_lora_weights, target.module, target.name)
        return insertion

    @classmethod
    def _new_update(cls, config: LoraConfig, target: Target, width: int, like: Tensor) -> LowRankUpdate:
        sizes, module = (*config.sizes(target.name), config.lora_dropout), target.module
        kind: type[LowRankUpdate]
        if isinstance(module, _ConvNd):
            n_in, kind = math.prod(module.weight.shape[1:]), LowRankKernel
        else:
            n_in = linear_shape(target.name, module)[0]
            kind = LowRankRows if isinstance(module, nn.Embedding) else LowRankUpdate
        if is_anchored(config.init_lora_weights):
            _check_anchored(config, target, kind)
            kind = AnchoredUpdate
        if not config.use_dora:
            return kind(like, n_in, width, *sizes, bias=config.use_bias and kind is not LowRankRows)
        return cls._new_dora(config, target, kind, n_in, width, like)

    @classmethod
    def _new_dora(
        cls, config: LoraConfig, target: Target, kind: type[LowRankUpdate], n_in: int, width: int, like: Tensor
    ) -> DecomposedUpdate:
        module = target.module
        if config.use_bias:
            msg = "A DoRA has no bias of B. Set use_dora or use_bias to False."
            raise ConfigError(msg)
        if kind is not LowRankUpdate:
            msg = f"{target.name} is a {type(module).__name__}; DoRA acts on linear layers. Leave it out, or leave use_dora off."
            raise TargetError(msg)
        if fault := linear_fault(module):
            msg = f"{target.name} cannot hold a DoRA, which reads the layer's weight: {fault}. Leave use_dora off."
            raise TargetError(msg)
        return DecomposedUpdate(like, module, n_in, width, *config.sizes(target.name), config.lora_dropout)

    def initialize_eva(self, batches: Iterable[Any]) -> None:
        """Start every A in the directions in which the inputs of its layer vary most (`deltahub.deltas.eva`).

        The backbone runs on the batches in eval mode, without gradients. Padding is left out by `attention_mask`.

        Args:
            batches: some batches as the backbone takes them: mappings, tuples, or single tensors.

        Raises:
            ConfigError: an update is not that of a linear layer, or is trained already; a layer was not called, or with too few tokens.
            TargetError: the delta was removed, or a module that holds it was replaced.
        """
        self.check_places()
        initialise_eva(self.backbone_model, self.insertions, batches)

    @classmethod
    def as_saved(cls, config: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
        """Return the config and the tensors without what mattered only at the start."""
        return plain_form(config, tensors)


def _check_anchored(config: LoraConfig, target: Target, kind: type[LowRankUpdate]) -> None:
    """Refuse an initialisation from the weight where the weight cannot be read, or is not that of a linear layer.

    Raises:
        ConfigError: the delta is a DoRA.
        TargetError: the layer is not a linear layer with values of its own.
    """
    name = config.init_lora_weights
    if config.use_dora:
        msg = f"A DoRA cannot start with init_lora_weights={name!r}, which takes a part out of the weight. Leave one of them out."
        raise ConfigError(msg)
    fault = "it is not a linear layer" if kind is not LowRankUpdate else linear_fault(target.module)
    if fault:
        msg = f"init_lora_weights={name!r} reads the weight of a linear layer, and {target.name} is a {type(target.module).__name__}: {fault}. Leave it out."
        raise TargetError(msg)
