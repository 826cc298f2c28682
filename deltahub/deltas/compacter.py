"""Compacter: an adapter whose matrices are sums of Kronecker products.

    h' = h + act(h D + b_D) U + b_U        D = sum_i  A_i (x) B_i,  i = 1..n        (U alike)

    A_i: (n, n), the rules, may be products of thin matrices and may be shared by all layers (`shared_phm_rule`)
    B_i: (n_in / n, n_out / n), may be products of matrices of rank `phm_rank`, and may be shared too (`shared_W_phm`)

Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", https://arxiv.org/abs/2106.04647
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.deltas.adapter_layers import activation, reduced, refuse_channels_first
from deltahub.deltas.hypercomplex import HypercomplexLinear
from deltahub.deltas.precision import added
from deltahub.engine.building import Like
from deltahub.engine.fused import FusedInsertion
from deltahub.engine.insertion import Args, Insertion, Kwargs, map_hidden
from deltahub.engine.structure.targets import Target
from deltahub.handle.base import DeltaBase


@dataclass(frozen=True, kw_only=True)
class CompacterConfig(DeltaConfig):
    """Options of Compacter: the size of the bottleneck, and the composition of its matrices.

    Args:
        reduction_factor: how many times narrower than the hidden state the bottleneck is.
        non_linearity: see `AdapterConfig`.
        phm_c_init: distribution of the initial rules: ``"normal"`` (deviation 0.01) or ``"uniform"`` (from -0.01 to 0.01).
        hypercomplex_division: n, the number of Kronecker products; it divides every width.
        learn_phm: whether the rules train.
        hypercomplex_nonlinearity: initialisation of the B_i: ``"glorot-uniform"``, ``"glorot-normal"`` or ``"normal"``.
        shared_phm_rule: whether all layers share one set of rules.
        factorized_phm: whether each B_i is a product of two matrices of rank `phm_rank`.
        shared_W_phm: whether all layers share the B_i, one set for the down projections and one for the up projections.
        factorized_phm_rule: whether each rule is a product of two vectors.
        phm_rank: rank of a factorised B_i.
        phm_init_range: standard deviation of the B_i if their initialisation is ``"normal"``.
        kronecker_prod: kept for OpenDelta's signature, where it chose between two ways to the same result.
        use_bias_up_sampler: whether the up projection has a bias.
        use_bias_down_sampler: whether the down projection has a bias.
    """

    reduction_factor: int = 16
    non_linearity: str = "gelu_new"
    phm_c_init: str = "normal"
    hypercomplex_division: int = 4
    learn_phm: bool = True
    hypercomplex_nonlinearity: str = "glorot-uniform"
    shared_phm_rule: bool = False
    factorized_phm: bool = True
    shared_W_phm: bool = False  # noqa: N815  (the name in OpenDelta)
    factorized_phm_rule: bool = False
    phm_rank: int = 1
    phm_init_range: float = 0.0001
    kronecker_prod: bool | None = None
    use_bias_up_sampler: bool = True
    use_bias_down_sampler: bool = True

    delta_type: ClassVar[str] = "compacter"


class HypercomplexBottleneck(Insertion):
    """An insertion that adds ``up(act(down(h)))`` to the hidden state of a module's output.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
        bottleneck: size of the bottleneck.
        where: the module's name, for errors.
    """

    def __init__(self, like: Tensor, width: int, bottleneck: int, config: CompacterConfig, where: str) -> None:
        super().__init__()
        self.down_sampler = HypercomplexLinear(like, width, bottleneck, config, config.use_bias_down_sampler, where)
        self.activation = activation(config.non_linearity)
        self.up_sampler = HypercomplexLinear(like, bottleneck, width, config, config.use_bias_up_sampler, where)

    def after(self, target: nn.Module, args: Args, kwargs: Kwargs, output: Any) -> Any:
        """Change the hidden state, ``(..., width)``; other outputs of the module pass through."""
        return map_hidden(output, self._change)

    def _change(self, hidden: Tensor) -> Tensor:
        h = hidden.to(torch.promote_types(hidden.dtype, self.down_sampler.dtype))
        return added(hidden, self.up_sampler(self.activation(self.down_sampler(h)).to(h.dtype)))


class CompacterModel(DeltaBase):
    """Compacters after every addressed module; by default the output projections of attention and feed-forward.

    Args:
        backbone_model: the model to modify.
        modified_modules: addresses of modules that return a hidden state, alone or as the first of several outputs.
        exclude_modules: addresses of modules to leave out.
        unfrozen_modules: addresses of parameters that `freeze_module` leaves trainable.
        common_structure: True for common names only, False for real names only, None for whichever matches.
        interactive_modify: True, or a local port, to choose the modules on a web page.
        backend: only ``"hf"``.
        name: the delta's name on this backbone.
        dtype: dtype of the parameters; by default float32, or the layer's if wider.

    The other arguments are the options of `CompacterConfig`.
    """

    delta_type = "compacter"
    config_class = CompacterConfig
    default_modified_modules = ("attn@.proj@", "ff@.w2@")

    def __init__(
        self,
        backbone_model: nn.Module,
        modified_modules: Sequence[str] | None = None,
        exclude_modules: Sequence[str] | None = None,
        unfrozen_modules: Sequence[str] | None = None,
        common_structure: bool | None = None,
        interactive_modify: bool | int = False,
        backend: str = "hf",
        reduction_factor: int = 16,
        non_linearity: str = "gelu_new",
        phm_c_init: str = "normal",
        hypercomplex_division: int = 4,
        learn_phm: bool = True,
        hypercomplex_nonlinearity: str = "glorot-uniform",
        shared_phm_rule: bool = False,
        factorized_phm: bool = True,
        shared_W_phm: bool = False,  # noqa: N803  (the name in OpenDelta)
        factorized_phm_rule: bool = False,
        phm_rank: int = 1,
        phm_init_range: float = 0.0001,
        kronecker_prod: bool | None = None,
        use_bias_up_sampler: bool = True,
        use_bias_down_sampler: bool = True,
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = CompacterConfig.from_dict(
            {
                "modified_modules": modified_modules,
                "exclude_modules": exclude_modules,
                "unfrozen_modules": unfrozen_modules,
                "common_structure": common_structure,
                "reduction_factor": reduction_factor,
                "non_linearity": non_linearity,
                "phm_c_init": phm_c_init,
                "hypercomplex_division": hypercomplex_division,
                "learn_phm": learn_phm,
                "hypercomplex_nonlinearity": hypercomplex_nonlinearity,
                "shared_phm_rule": shared_phm_rule,
                "factorized_phm": factorized_phm,
                "shared_W_phm": shared_W_phm,
                "factorized_phm_rule": factorized_phm_rule,
                "phm_rank": phm_rank,
                "phm_init_range": phm_init_range,
                "kronecker_prod": kronecker_prod,
                "use_bias_up_sampler": use_bias_up_sampler,
                "use_bias_down_sampler": use_bias_down_sampler,
            }
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
    def new_insertion(cls, config: CompacterConfig, target: Target, width: int, like: Tensor) -> HypercomplexBottleneck:
        """Build a new compacter for one module."""
        bottleneck = reduced(width, config.reduction_factor, target.name)
        return HypercomplexBottleneck(like, width, bottleneck, config, target.name)

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: CompacterConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build a compacter for each module; the first one owns shared tensors, and the others refer to it.

        Raises:
            ConfigError: modules of different widths would have to share weights.
        """
        made = super().new_insertions(backbone, config, targets, like)
        first, *others = (layer for insertion in made.values() for layer in _bottlenecks(insertion))
        if config.shared_phm_rule:
            for layer in (first.up_sampler, *(s for other in others for s in (other.down_sampler, other.up_sampler))):
                layer.share_rules(first.down_sampler)
        if config.shared_W_phm:
            for other in others:
                other.down_sampler.share_weights(first.down_sampler)
                other.up_sampler.share_weights(first.up_sampler)
        return made


def _bottlenecks(insertion: Insertion) -> list[HypercomplexBottleneck]:
    members = [insertion.at(part) for part in insertion.parts] if isinstance(insertion, FusedInsertion) else [insertion]
    return [member for member in members if isinstance(member, HypercomplexBottleneck)]
