"""AdapterFusion: attention over the results of several frozen adapters in the same places.

    h' = h + sum_i p_i V g_i(h)        p = softmax_i((Q h + b_Q) . (K g_i(h) + b_K))        g_i: the adapters; Q, K, V: (d, d)

The adapters are part of the delta, as tensors that do not train. V starts as the identity, up to 1e-6. With fixed weights the p_i are
these, and nothing trains: AdapterHub's Average.

Pfeiffer et al. 2021, "AdapterFusion: Non-Destructive Task Composition for Transfer Learning", https://arxiv.org/abs/2005.00247
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Limits
from deltahub.deltas.adapter_layers import HiddenUpdate, InputUpdate
from deltahub.deltas.precision import linear, widened
from deltahub.deltas.union import UnionConfig, parts_of, without_whole
from deltahub.engine.building import Like
from deltahub.engine.insertion import Insertion
from deltahub.engine.shapes import output_widths
from deltahub.engine.structure.targets import Target
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class FusionConfig(UnionConfig):
    """Options of AdapterFusion: the configs of its members, and which projections there are.

    Args:
        parts: configs of adapters, low-rank adapters or compacters, as configs or in their JSON form, at least one.
        query: whether h is projected; otherwise Q is the identity.
        key: the same for K.
        value: the same for V.
        dropout: share of the scores dropped in training.
        weights: fixed weights of the members, one each, instead of attention; then there are no projections.
    """

    query: bool = True
    key: bool = True
    value: bool = True
    dropout: Annotated[float, Limits(minimum=0, exclusiveMaximum=1)] = 0.0
    weights: Sequence[float] = ()

    delta_type: ClassVar[str] = "fusion"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weights", tuple(self.weights))
        if self.weights and len(self.weights) != len(self.parts):
            msg = f"The fusion has {len(self.parts)} parts and {len(self.weights)} weights. Give each part one."
            raise ConfigError(msg)


class FusedUpdates(HiddenUpdate):
    """An insertion that adds to a hidden state a weighted mean of the updates of frozen members.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
        members: the insertions of the members by the number of their part; their parameters become buffers.
        config: which projections there are.
    """

    def __init__(self, like: Tensor, width: int, members: Mapping[int, HiddenUpdate], config: FusionConfig) -> None:
        super().__init__()
        for member in members.values():
            _freeze(member)
        self.members = nn.ModuleList(members.values())
        self.weights = tuple(config.weights[number] for number in members) if config.weights else ()
        self.dropout = nn.Dropout(config.dropout)
        self.query = _projection(width, like) if config.query and not self.weights else None
        self.key = _projection(width, like) if config.key and not self.weights else None
        learned = config.value and not self.weights
        self.value = nn.Parameter(like.new_full((width, width), 1e-6)) if learned else None
        if self.value is not None and not like.is_meta:
            with torch.no_grad():
                self.value.fill_diagonal_(1.0)

    def update(self, hidden: Tensor) -> Tensor:
        """Compute the weighted mean of the members' updates, ``(..., d)`` as the hidden state."""
        own = next(self.parameters(), hidden)
        h = widened(hidden, own)
        updates = torch.stack([cast("HiddenUpdate", member).update(hidden).to(h.dtype) for member in self.members], -2)
        if self.weights:
            return (updates * updates.new_tensor(self.weights)[:, None]).sum(-2)
        query = h if self.query is None else linear(self.query, h)
        keys = updates if self.key is None else linear(self.key, updates)
        scores = self.dropout((keys @ query.unsqueeze(-1)).squeeze(-1))
        mean: Tensor = (scores.softmax(-1).unsqueeze(-2) @ updates).squeeze(-2)
        return mean if self.value is None else F.linear(mean, self.value.to(h.dtype))


class FusedInputUpdates(InputUpdate, FusedUpdates):
    """Fused updates that are added to the input of a module."""


class FusionModel(DeltaBase):
    """AdapterFusion over several adapters, which are kept in the delta and do not train.

    `of` makes one of deltas on a backbone.

    Args:
        backbone_model: the model to modify.
        parts: the configs of the members, as configs or in their JSON form.
        query: whether h is projected.
        key: whether the updates are projected for the scores.
        value: whether their mean is projected.
        dropout: share of the scores dropped in training.
        weights: fixed weights of the members instead of attention.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
    """

    delta_type = "fusion"
    config_class = FusionConfig
    default_exclude_modules = ()

    def __init__(
        self,
        backbone_model: nn.Module,
        parts: Sequence[Mapping[str, Any] | DeltaConfig],
        query: bool = True,
        key: bool = True,
        value: bool = True,
        dropout: float = 0.0,
        weights: Sequence[float] = (),
        unfrozen_modules: Sequence[str] | None = None,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = FusionConfig(
            parts=cast("Sequence[Mapping[str, Any]]", parts),
            query=query,
            key=key,
            value=value,
            dropout=dropout,
            weights=weights,
            unfrozen_modules=unfrozen_modules,
        )
        super().__init__(backbone_model, config, name=name, dtype=dtype)

    @classmethod
    def of(cls, deltas: Sequence[DeltaBase], **options: Any) -> Self:
        """Put a fusion of trained deltas on their backbone; it holds copies of them, and they are detached.

        Args:
            deltas: adapters, low-rank adapters or compacters on one backbone.
            options: options of the class.

        Raises:
            ConfigError: there is none, they are on several backbones, or one is of another type.
            MergeError, RouteError: as for `detach`.
        """
        if not deltas or any(delta.backbone_model is not deltas[0].backbone_model for delta in deltas):
            msg = "A fusion needs at least one delta, and all of them on one backbone. Load them on the same model."
            raise ConfigError(msg)
        names = [delta.name for delta in deltas]
        if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
            msg = f"{twice!r} is given twice, and a fusion holds each delta once. Give it once, or with weights, the sum of both."
            raise ConfigError(msg)
        if scaled := next((delta for delta in deltas if delta.config.strength != 1), None):
            msg = f"{scaled.name!r} acts with a strength of {scaled.config.strength:g}, which a fusion does not keep. Set it to 1, or give weights."
            raise ConfigError(msg)
        fusion = cls(deltas[0].backbone_model, [without_whole(delta.config) for delta in deltas], **options)
        for address, insertion in fusion.insertions.items():
            acting = [delta for delta in deltas if address in delta.insertions]
            for member, delta in zip(cast("FusedUpdates", insertion).members, acting, strict=True):
                member.load_state_dict(delta.insertions[address].state_dict())
        for delta in deltas:
            delta.detach()
        return fusion

    @classmethod
    def plan(cls, backbone: nn.Module, config: FusionConfig) -> list[Target]:
        """Return the modules of all members, each once."""
        targets = [target for method, part in parts_of(backbone, config) for target in method.plan(backbone, part)]
        return list({target.name: target for target in targets}.values())

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: FusionConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build the insertions of the members, and attention over those of each module.

        Raises:
            ConfigError: a member does not add an update to a hidden state, or only some do so at the input.
        """
        left = {target.name: target.module for target in targets}
        members: dict[str, dict[int, HiddenUpdate]] = {address: {} for address in left}
        for number, (method, part) in enumerate(parts_of(backbone, config)):
            own = [target for target in method.plan(backbone, part) if target.name in left]
            for address, insertion in method.new_insertions(backbone, part, own, like).items():
                if not isinstance(insertion, HiddenUpdate) or address not in members:
                    msg = (
                        f"A fusion holds methods that add to a hidden state (adapter, low_rank_adapter, compacter), and a {part.delta_type} does "
                        "something else. Put it beside the fusion as a delta of its own."
                    )
                    raise ConfigError(msg)
                members[address][number] = insertion
        widths = output_widths(backbone, left)
        return {
            address: _kind(address, inner)(like(left[address]), widths[address], inner, config)
            for address, inner in members.items()
        }


def _kind(address: str, members: Mapping[int, HiddenUpdate]) -> type[FusedUpdates]:
    at_input = {isinstance(member, InputUpdate) for member in members.values()}
    if len(at_input) > 1:
        msg = f"At {address} some members of the fusion act on the input and others on the output. Give all the same at_input."
        raise ConfigError(msg)
    return FusedInputUpdates if at_input == {True} else FusedUpdates


def _projection(width: int, like: Tensor) -> nn.Linear:
    layer = nn.Linear(width, width, dtype=like.dtype, device="meta").to_empty(device=like.device)
    if not like.is_meta:
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return layer


def _freeze(member: nn.Module) -> None:
    """Turn parameters into buffers, which are saved but never trained, regardless of freeze_module."""
    for module in member.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())
