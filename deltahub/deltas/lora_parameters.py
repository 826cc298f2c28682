"""LoRA on parameters that a module reads itself: stacks of experts, routers, and any other matrix.

    W   (n_out, n_in)             W + s B A            A: (r, n_in), B: (n_out, r)
    W_e (experts, n_out, n_in)    W_e + s B_e A_e      A: (experts, r, n_in), B: (experts, n_out, r); shared: those of a matrix
        (experts, n_in, n_out)    W_e + s (B_e A_e)^T  in classes that keep their matrices so

The sum is not computed where the module's forward multiplies by the parameter (`deltahub.engine.low_rank_sum`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from deltahub.deltas.lora_layers import LowRankUpdate
from deltahub.engine.bypassed import reader_of
from deltahub.engine.insertion import Insertion
from deltahub.engine.layers import linear_fault
from deltahub.engine.low_rank_sum import LowRankSum
from deltahub.engine.modules import module_at
from deltahub.engine.structure.experts import is_router, is_turned_stack, stacked_parameters
from deltahub.engine.structure.layouts import Part
from deltahub.engine.structure.targets import Target
from deltahub.engine.substitution import viewed
from deltahub.errors import ConfigError, TargetError

# Options that a LoRA on a parameter does not have, in PEFT neither.
_WITHOUT: Final = {
    "use_dora": "the norm of its rows needs the sum of each matrix with its update, which is not computed",
    "use_bias": "the module adds its biases itself",
    "lora_dropout": "it acts on the input of the product, which only the module has",
}
# The implementations of experts in transformers whose products work with a sum that is not computed.
_LAZY: Final = (None, "eager", "batched_mm", "grouped_mm")


class ParameterUpdate(LowRankUpdate):
    """A low-rank update of a parameter of two or three dimensions, or of a part of it.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        parameter: the parameter.
        turned: whether it is ``(experts, n_in, n_out)``.
        rank: width in between.
        scale: factor of the update.
        part: the part of n_out to act on; None for all.
        shared: whether the experts share A and B.
    """

    def __init__(
        self,
        like: Tensor,
        parameter: Tensor,
        turned: bool,
        rank: int,
        scale: float,
        part: Part | None = None,
        shared: bool = False,
    ) -> None:
        n_out, n_in = parameter.shape[-2:] if not turned else parameter.shape[:-3:-1]
        width = n_out if part is None else part.width(n_out)
        super().__init__(like.to("meta"), n_in, width, rank, scale)
        self.turned = turned
        self.part = part
        experts = () if parameter.dim() == 2 or shared else (len(parameter),)
        self.lora_A = nn.Parameter(like.new_empty(*experts, rank, n_in))  # (experts, rank, n_in)
        self.lora_B = nn.Parameter(like.new_empty(*experts, width, rank))
        if not like.is_meta:
            self.reset()

    def reset(self) -> None:
        """Initialise every A like a linear layer's weight; B is zero."""
        nn.init.kaiming_uniform_(self.lora_A.view(-1, self.lora_A.shape[-1]), a=5**0.5)
        nn.init.zeros_(self.lora_B)

    def summed(self, weight: Any) -> LowRankSum:
        """Return a parameter, or its stand-in, with the update."""
        down: Tensor = self.lora_A
        up: Tensor = self.lora_B
        if self.part is not None:
            up = self._placed(up, self.part, weight.shape[-1 if self.turned else -2])
        if self.turned:
            return LowRankSum(weight, down.mT, up.mT, self.scale)
        return LowRankSum(weight, up, down, self.scale)

    @staticmethod
    def _placed(up: Tensor, part: Part, n_out: int) -> Tensor:
        """Return B of a part with zeros in the other rows."""
        rows = part.rows(n_out).to(up.device)
        return up.new_zeros(*up.shape[:-2], n_out, up.shape[-1]).index_copy(-2, rows, up)


class ParameterUpdates(Insertion):
    """An insertion that holds the updates of some parameters that one module reads: its own, or the weights of layers that it does not call.

    Args:
        updates: those of each parameter, by its name in the module, such as ``"down_proj"`` or ``"dt_proj.weight"``.
    """

    def __init__(self, updates: Mapping[str, Sequence[ParameterUpdate]]) -> None:
        super().__init__()
        self.names = tuple(updates)
        for key, several in updates.items():
            parts = {update.part.label: update for update in several if update.part is not None}
            self.add_module(_label(key), nn.ModuleDict(parts) if parts else several[0])

    def updates_of(self, key: str) -> list[ParameterUpdate]:
        """Return the updates of a parameter: one, or one for each part."""
        child = self._modules[_label(key)]
        return [child] if isinstance(child, ParameterUpdate) else [*cast("Any", child).values()]

    def check_strength(self, strength: float) -> None:
        """Accept any strength: the updates have a scale."""

    def set_strength(self, strength: float) -> None:
        """Multiply the scale of each update."""
        for key in self.names:
            for update in self.updates_of(key):
                update.set_strength(strength)

    def substitute(self, target: nn.Module, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the parameters with their updates; computed sums where a kernel reads the memory of the parameters."""
        sums: dict[str, Any] = {}
        for key in self.names:
            layer, _, leaf = key.rpartition(".")
            if layer:  # one that the target does not call
                held: Any = {**values, **sums}.get(layer, target._modules[layer])
                sums[layer] = viewed(held, {leaf: self._summed(key, getattr(held, leaf)).dense()})
            else:
                sums[key] = self._summed(key, values[key] if key in values else getattr(target, key))
        if getattr(getattr(target, "config", None), "_experts_implementation", None) in _LAZY:
            return sums
        return {key: value.dense() if isinstance(value, LowRankSum) else value for key, value in sums.items()}

    def _summed(self, key: str, value: Any) -> LowRankSum:
        for update in self.updates_of(key):
            value = update.summed(value)
        summed: LowRankSum = value
        return summed

    def merged(self, target: nn.Module) -> Mapping[str, Tensor]:
        """Return the parameters with their updates, in float32 or wider."""
        values: dict[str, Tensor] = {}
        for key in self.names:
            value: Tensor = attrgetter(key)(target)
            value = value.to(torch.promote_types(value.dtype, torch.float32))
            for update in self.updates_of(key):
                value = update.summed(value).dense()
            values[key] = value
        return values


def _label(key: str) -> str:
    """Return the name that the update of a parameter has in a delta: the parameter's, or that of the layer with the weight."""
    return key.removesuffix(".weight")


def read_by_parent(backbone: nn.Module, target: Target) -> Target | None:
    """Return the weight of a layer that is never called as a parameter of the module that reads it; None if that cannot be done."""
    parent = reader_of(backbone, target.name)
    if not parent or target.parts or not isinstance(target.module, nn.Linear) or linear_fault(target.module):
        return None
    return Target(parent, module_at(backbone, parent), parameter=f"{target.name.rpartition('.')[2]}.weight")


def with_matrices(target: Target) -> list[Target]:
    """Return a target, or the parameters that it stands for: the matrices of a mixture of experts, or the weight of a router."""
    module = target.module
    if target.parameter or target.parts:
        return [target]
    if stacks := stacked_parameters(module):
        return [replace(target, parameter=key) for key in stacks]
    return [replace(target, parameter="weight")] if is_router(target.name, module) else [target]


def parameter_insertions(
    config: Any,
    targets: Sequence[Target],
    others: Collection[str],
    like: Callable[[nn.Module], Tensor],
) -> dict[str, Insertion]:
    """Build the insertions of the addressed parameters, by module.

    Args:
        config: that of a LoRA.
        others: the modules that are addressed as a whole.
        like: returns, for a module, a tensor with the dtype and device for its delta.

    Raises:
        ConfigError: the config has an option that a LoRA on a parameter does not have.
        TargetError: a module is addressed as a whole, too.
    """
    updates: dict[str, dict[str, list[ParameterUpdate]]] = {}
    for target in targets:
        _check_options(config, target.address)
        if target.name in others:
            msg = f"{target.name} is addressed as a layer and by its parameter {target.parameter}. Name one of them."
            raise TargetError(msg)
        parameter: Tensor = attrgetter(target.parameter)(target.module)
        turned = is_turned_stack(target.module, target.parameter)
        rank, scale = config.sizes(target.address)
        updates.setdefault(target.name, {})[target.parameter] = [
            ParameterUpdate(like(target.module), parameter, turned, rank, scale, part=part, shared=config.share_experts)
            for part in target.parts or (None,)
        ]
    return {module: ParameterUpdates(several) for module, several in updates.items()}


def _check_options(config: Any, address: str) -> None:
    for option, reason in _WITHOUT.items():
        if getattr(config, option):
            msg = (
                f"{address} is a parameter that its module reads itself, where a LoRA has no {option}: {reason}. Set {option} to "
                f"{type(getattr(config, option))()}, or leave the parameter out."
            )
            raise ConfigError(msg)
