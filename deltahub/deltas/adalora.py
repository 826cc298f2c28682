"""AdaLoRA: a LoRA in the form of singular values, whose ranks are distributed over the modules by importance while it trains.

    y = W x + s B (E * (A x))       A: (r, n_in), B: (n_out, r), E: (r,), E = 0 at the start; s = alpha / (init_r + 1e-5)

A regulariser keeps the rows of A and the columns of B orthonormal; `deltahub.deltas.rank_budget` chooses the directions to keep.

Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", https://arxiv.org/abs/2303.10512
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.address import exact_addresses, value_for
from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits
from deltahub.deltas.lora_layers import LowRankUpdate
from deltahub.deltas.precision import added
from deltahub.deltas.rank_budget import Schedule, allocate, forget, observe
from deltahub.deltas.target_checks import refuse_unmatched, require_linear
from deltahub.engine.building import Like
from deltahub.engine.guards import refuse_merged
from deltahub.engine.insertion import Args, Insertion, Kwargs, first_input
from deltahub.engine.modules import modules_by_name
from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import Target
from deltahub.engine.weights import members_of
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase

if TYPE_CHECKING:
    from transformers import TrainerCallback

Share = Annotated[float, Limits(minimum=0, exclusiveMaximum=1)]
Steps = Annotated[int, Limits(minimum=0)]


@dataclass(frozen=True, kw_only=True)
class AdaLoraConfig(DeltaConfig):
    """Options of AdaLoRA, with PEFT's names: the ranks, and the steps in which they shrink.

    Args:
        init_r: rank of every module at the start.
        target_r: average rank at the end, at most `init_r`.
        lora_alpha: the update is scaled by ``lora_alpha / (init_r + 1e-5)``.
        lora_dropout: share of the input dropped in training.
        total_step: number of training steps; needed to train with a budget.
        tinit: steps before the budget shrinks.
        tfinal: steps at the end with the final ranks.
        deltaT: steps from one allocation to the next.
        beta1: share of the old average when the importance of a parameter is smoothed.
        beta2: the same for its uncertainty.
        orth_reg_weight: weight of the regulariser.
        rank_pattern: ranks of single modules, by real address, once the delta was pruned.
    """

    init_r: Count = 12
    target_r: Count = 8
    lora_alpha: Annotated[float, Limits(exclusiveMinimum=0)] = 8
    lora_dropout: Share = 0.0
    total_step: Annotated[int, Limits(minimum=1)] | None = None
    tinit: Steps = 0
    tfinal: Steps = 0
    deltaT: Count = 1  # noqa: N815  (the name in PEFT)
    beta1: Share = 0.85
    beta2: Share = 0.85
    orth_reg_weight: Annotated[float, Limits(minimum=0)] = 0.5
    rank_pattern: Mapping[str, Count] = field(default_factory=dict)

    delta_type: ClassVar[str] = "adalora"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_r > self.init_r:
            msg = f"target_r is {self.target_r}, more than init_r ({self.init_r}): the ranks only shrink. Raise init_r."
            raise ConfigError(msg)
        if self.total_step is not None and self.tinit + self.tfinal >= self.total_step:
            msg = (
                f"tinit + tfinal is {self.tinit + self.tfinal}, and total_step is {self.total_step}: no step is left in which the "
                "ranks shrink. Lower tinit or tfinal."
            )
            raise ConfigError(msg)


class SingularValueUpdate(LowRankUpdate):
    """An insertion that adds ``scale * B (E * (A x))`` to the output of a linear layer.

    Attributes:
        averages: the smoothed importance and uncertainty of each parameter while it trains.
    """

    def __init__(self, like: Tensor, n_in: int, n_out: int, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(like, n_in, n_out, rank, scale, dropout)
        self.lora_E = nn.Parameter(like.new_zeros(rank))
        self.register_buffer("lora_kept", torch.ones(rank, dtype=torch.bool, device=like.device))
        self.averages: dict[str, tuple[Tensor, Tensor]] = {}

    def reset(self) -> None:
        """Initialise A and B with small values, as in PEFT; E is zero."""
        for side in (self.lora_A, self.lora_B):
            if side.numel():
                nn.init.normal_(side, std=0.02)

    @property
    def kept(self) -> Tensor:
        """Which directions are within the budget, ``(r,)``."""
        kept: Tensor = self.lora_kept
        return kept

    def low_rank(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute ``E * (A x)`` in a given precision: input tensor with shape ``(..., n_in)``, output ``(..., r)``."""
        return super().low_rank(x, dtype) * self.lora_E.to(dtype)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Add the update to the output tensor, ``(..., n_out)``."""
        return added(output, self.update(first_input(args, kwargs), output))

    def product(self, dtype: torch.dtype) -> Tensor:
        """Compute ``B diag(E) A``, ``(n_out, n_in)``."""
        return (self.lora_B.to(dtype) * self.lora_E.to(dtype)) @ self.lora_A.to(dtype)

    @property
    def needed(self) -> Tensor:
        """Which directions are within the budget, or act although they are not, ``(r,)``."""
        return self.kept | (self.lora_E != 0)

    @torch.no_grad()
    def mask(self) -> None:
        """Set the singular values of all other directions to zero."""
        self.lora_E.masked_fill_(~self.kept, 0.0)

    @torch.no_grad()
    def shrink(self, rank: int) -> None:
        """Remove directions that are not needed, down to a rank."""
        chosen = self.needed.to(torch.uint8).argsort(descending=True, stable=True)[:rank].sort().values
        for name, dimension in (("lora_A", 0), ("lora_B", 1), ("lora_E", 0)):
            old = getattr(self, name)
            setattr(self, name, nn.Parameter(old.index_select(dimension, chosen), requires_grad=old.requires_grad))
        self.lora_kept = self.kept[chosen]


class AdaLoraModel(DeltaBase):
    """AdaLoRA at every addressed linear layer; by default the q and v projections of self-attention.

    A training step is ``(loss + delta.regularisation()).backward()``, the step of the optimizer, ``delta.update_budget(step)``, and
    ``zero_grad()``. For a Trainer of transformers, `trainer_callback` does the same. After training, `prune` removes what is off.

    Args:
        backbone_model: the model to modify.
        init_r: rank of every module at the start.
        target_r: average rank at the end.
        total_step: number of training steps.
        modified_modules: addresses of linear layers or Conv1D layers.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.
        options: the other options of `AdaLoraConfig`.
    """

    delta_type = "adalora"
    config_class = AdaLoraConfig
    default_modified_modules = ("attn@.q@", "attn@.v@")

    def __init__(
        self,
        backbone_model: nn.Module,
        init_r: int = 12,
        target_r: int = 8,
        total_step: int | None = None,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        document = {
            "init_r": init_r,
            "target_r": target_r,
            "total_step": total_step,
            "modified_modules": modified_modules,
            "exclude_modules": exclude_modules,
            "unfrozen_modules": unfrozen_modules,
            "common_structure": common_structure,
        }
        config = AdaLoraConfig.from_dict(document, **options)
        super().__init__(backbone_model, config, name=name, dtype=dtype, interactive_modify=interactive_modify)

    @classmethod
    def choose(cls, targets: list[Target]) -> list[Target]:
        """Check that each module is a linear layer."""
        require_linear(targets, "an AdaLoRA")
        return targets

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: AdaLoraConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build an update for each target.

        Raises:
            NoMatchError: an address of `rank_pattern` matches no module of the delta.
        """
        refuse_unmatched(config.rank_pattern, "rank_pattern", [target.name for target in targets])
        return super().new_insertions(backbone, config, targets, like)

    @classmethod
    def new_insertion(cls, config: AdaLoraConfig, target: Target, width: int, like: Tensor) -> SingularValueUpdate:
        """Build a new update for one layer, or for `width` rows of a fused one."""
        rank = value_for(config.rank_pattern, target.name, config.init_r)
        scale = config.lora_alpha / (config.init_r + 1e-5)
        n_in = linear_shape(target.name, target.module)[0]
        return SingularValueUpdate(like, n_in, width, rank, scale, config.lora_dropout)

    # ----- training -----

    @property
    def options(self) -> AdaLoraConfig:
        """The delta's configuration."""
        config = self.config
        assert isinstance(config, AdaLoraConfig)
        return config

    @property
    def ranks(self) -> dict[str, int]:
        """The number of directions that are kept in each module."""
        return {
            address: max(int(update.kept.sum()) for update in _updates([insertion]))
            for address, insertion in self.insertions.items()
        }

    def regularisation(self) -> Tensor:
        """Compute the term to add to the loss: ``orth_reg_weight`` times the mean of ``||A A^T - I||`` and ``||B^T B - I||``."""
        terms = []
        for update in _updates(self.insertions.values()):
            for side in (update.lora_A, update.lora_B.mT):
                identity = torch.eye(len(side), dtype=side.dtype, device=side.device)
                terms.append(torch.linalg.matrix_norm(side @ side.mT - identity) if len(side) else side.sum())
        device = terms[0].device
        return self.options.orth_reg_weight * torch.stack([term.to(device) for term in terms]).mean()

    def update_budget(self, step: int) -> None:
        """Note the gradients of a training step, and when it is time set the least important singular values to zero.

        Call it when the optimizer has made its step, before ``zero_grad()``. Averages begin anew in a process that resumes training.

        Args:
            step: the number of the step, counted from 0.

        Raises:
            ConfigError: `total_step` is not set, the delta was pruned already, or a parameter has no gradient.
            MergeError: deltas are merged.
        """
        refuse_merged(self.backbone_model)
        config, updates = self.options, _updates(self.insertions.values())
        if config.total_step is None or config.rank_pattern:
            msg = (
                "Its ranks are final, because the delta was pruned. Train it without update_budget."
                if config.rank_pattern
                else "The budget of AdaLoRA depends on total_step, which is not set. Make the delta with total_step=... ."
            )
            raise ConfigError(msg)
        schedule = Schedule(config.total_step, config.tinit, config.tfinal, config.deltaT)
        first, last = config.init_r * len(updates), config.target_r * len(updates)
        budget = schedule.budget(step, first, last)
        if step < schedule.end:
            observe(updates, config.beta1, config.beta2)
            if schedule.allocates(step):
                allocate(updates, budget)
            return
        if any(update.averages for update in updates) or sum(int(update.kept.sum()) for update in updates) > budget:
            if not any(update.averages for update in updates):
                observe(updates, config.beta1, config.beta2)
            allocate(updates, budget)
            forget(updates)
        for update in updates:
            update.mask()

    def prune(self) -> dict[str, int]:
        """Remove the directions that are off, which changes no output, and return the rank of each module.

        A module without any keeps one whose singular value is zero. Parameters are replaced, so an optimizer made before does not train
        them: call it after training, before the delta is saved.

        Raises:
            MergeError: deltas are merged.
        """
        refuse_merged(self.backbone_model)
        ranks = {}
        for address, insertion in self.insertions.items():
            updates = _updates([insertion])
            ranks[address] = max(1, *(int(update.needed.sum()) for update in updates))
            for update in updates:
                update.shrink(ranks[address])
        if any(rank != self.options.init_r for rank in ranks.values()):
            addresses = exact_addresses(ranks, modules_by_name(self.backbone_model))
            pattern = {addresses[name]: rank for name, rank in ranks.items()}
            self._entry.config = replace(self.options, rank_pattern=pattern)
        return ranks

    def trainer_callback(self) -> TrainerCallback:
        """Return a callback for a Trainer of transformers that adds the regulariser's gradient, updates the budget, and prunes at the end."""
        from deltahub.deltas.budget_callback import BudgetCallback

        return BudgetCallback(self)


def _updates(insertions: Iterable[Insertion]) -> list[SingularValueUpdate]:
    """Return the updates at some modules, those on parts of fused layers one by one."""
    members = (member for insertion in insertions for member in members_of(insertion))
    return [member for member in members if isinstance(member, SingularValueUpdate)]
