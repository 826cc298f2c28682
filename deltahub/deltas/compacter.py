"""Compacter: an adapter whose matrices are sums of Kronecker products.

    h' = h + act(h D + b_D) U + b_U        D = sum_i  A_i (x) B_i,  i = 1..n        (U alike)

    A_i: (n, n), the rules, may be products of thin matrices and may be shared by all layers (`shared_phm_rule`)
    B_i: (n_in / n, n_out / n), may be products of matrices of rank `phm_rank`, and may be shared too (`shared_W_phm`)

Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", https://arxiv.org/abs/2106.04647

Each D and U is a linear layer after Zhang et al. 2021 (https://arxiv.org/abs/2102.08597):

    y = x H + b        H = sum_i  rule_i (x) W_i        rule: (n, n, n), W: (n, n_in / n, n_out / n)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from deltahub.checkpoint.config import DeltaConfig
from deltahub.checkpoint.options import Count, Limits, Positive, Text
from deltahub.deltas.adapter_layers import (
    HiddenUpdate,
    InputUpdate,
    activation,
    bottleneck_width,
    refuse_channels_first,
    refuse_parts_at_input,
    without_defaults,
)
from deltahub.engine.building import Like
from deltahub.engine.insertion import Insertion
from deltahub.engine.structure.targets import Target
from deltahub.engine.weights import members_of
from deltahub.errors import ConfigError
from deltahub.handle.base import DeltaBase


class Options(Protocol):
    """The options of a `CompacterConfig` that one layer needs."""

    @property
    def hypercomplex_division(self) -> int:
        """The number of Kronecker products."""

    @property
    def phm_c_init(self) -> str:
        """The distribution of the initial rules."""

    @property
    def learn_phm(self) -> bool:
        """Whether the rules train."""

    @property
    def hypercomplex_nonlinearity(self) -> str:
        """The initialisation of the weights."""

    @property
    def factorized_phm(self) -> bool:
        """Whether the weights are products of thin matrices."""

    @property
    def factorized_phm_rule(self) -> bool:
        """Whether the rules are products of thin matrices."""

    @property
    def phm_rank(self) -> int:
        """The rank of factorised weights."""

    @property
    def phm_init_range(self) -> float:
        """The standard deviation of normally distributed initial weights."""


class HypercomplexLinear(nn.Module):
    """A linear layer built from Kronecker products; rules and weights may be those of another layer.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        n_in: width of the input.
        n_out: width of the output.
        bias: whether the layer has a bias.
        where: name of the module that the layer belongs to, for errors.

    Raises:
        ConfigError: n does not divide a width.
    """

    def __init__(self, like: Tensor, n_in: int, n_out: int, config: Options, bias: bool, address: str) -> None:
        super().__init__()
        n = config.hypercomplex_division
        for width in (n_in, n_out):
            if width % n:
                msg = (
                    f"hypercomplex_division {n} does not divide {width}, a width of the compacter at {address}. Choose a "
                    f"reduction_factor and a hypercomplex_division such that {n_in} and {n_out} are multiples of it."
                )
                raise ConfigError(msg)
        # A tuple keeps the parameters of another layer out of this one's.
        self.rule_owner: tuple[HypercomplexLinear, ...] = ()
        self.weight_owner: tuple[HypercomplexLinear, ...] = ()
        rules = {"phm_rule": (n, n, n)}
        if config.factorized_phm_rule:
            rules = {"phm_rule_left": (n, n, 1), "phm_rule_right": (n, 1, n)}
        weights = {"W": (n, n_in // n, n_out // n)}
        if config.factorized_phm:
            weights = {"W_left": (n, n_in // n, config.phm_rank), "W_right": (n, config.phm_rank, n_out // n)}
        for name, shape in rules.items():
            self._add_rule(name, like.new_empty(shape), config)
        for name, shape in weights.items():
            setattr(self, name, nn.Parameter(like.new_empty(shape)))
        self.b = nn.Parameter(like.new_zeros(n_out)) if bias else None
        self.rules, self.weights = tuple(rules), tuple(weights)
        if not like.is_meta:
            self._draw(config)

    def _add_rule(self, name: str, rule: Tensor, config: Options) -> None:
        if config.learn_phm:
            setattr(self, name, nn.Parameter(rule))
        else:  # a buffer is saved but never trained, regardless of freeze_module
            self.register_buffer(name, rule)

    @torch.no_grad()
    def _draw(self, config: Options) -> None:
        for name in self.rules:
            rule = getattr(self, name)
            rule.uniform_(-0.01, 0.01) if config.phm_c_init == "uniform" else rule.normal_(std=0.01)
        draw = {"glorot-normal": nn.init.xavier_normal_, "glorot-uniform": nn.init.xavier_uniform_}
        for name in self.weights:
            for matrix in getattr(self, name):
                if config.hypercomplex_nonlinearity == "normal":
                    matrix.normal_(std=config.phm_init_range)
                else:
                    draw[config.hypercomplex_nonlinearity](matrix, gain=math.sqrt(2))

    def share_rules(self, owner: HypercomplexLinear) -> None:
        """Use the rules of another layer from now on."""
        self.rule_owner = (owner,)
        for name in self.rules:
            delattr(self, name)

    def share_weights(self, owner: HypercomplexLinear) -> None:
        """Use the W of another layer from now on.

        Raises:
            ConfigError: its shape differs.
        """
        for name in self.weights:
            shape, owner_shape = getattr(self, name).shape, getattr(owner, name).shape
            if shape != owner_shape:
                msg = (
                    f"shared_W_phm needs modules of one width: {name} would be {list(shape)} at one and {list(owner_shape)} at "
                    "another. Address modules of one width, or leave shared_W_phm off."
                )
                raise ConfigError(msg)
            delattr(self, name)
        self.weight_owner = (owner,)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the layer's weights."""
        holder = self.weight_owner[0] if self.weight_owner else self
        weight: Tensor = getattr(holder, self.weights[0])
        return weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map an input tensor, ``(..., n_in)``, to an output, ``(..., n_out)``, in the precision of the input."""
        rule = self._product(self.rules, self.rule_owner, x.dtype)  # (n, n, n)
        weight = self._product(self.weights, self.weight_owner, x.dtype)  # (n, n_in / n, n_out / n)
        n, p, q = rule.shape[1], weight.shape[1], weight.shape[2]
        matrix = torch.einsum("iab,ipq->apbq", rule, weight).reshape(n * p, n * q)
        y = x @ matrix
        return y if self.b is None else y + self.b.to(x.dtype)

    def _product(self, names: tuple[str, ...], owner: tuple[HypercomplexLinear, ...], dtype: torch.dtype) -> Tensor:
        holder = owner[0] if owner else self
        factors: list[Tensor] = [getattr(holder, name).to(dtype) for name in names]
        return factors[0] if len(factors) == 1 else torch.bmm(*factors)


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
        at_input: see `AdapterConfig`.
    """

    reduction_factor: Count = 16
    non_linearity: Text = "gelu_new"
    phm_c_init: Annotated[str, Limits(enum=["normal", "uniform"])] = "normal"
    hypercomplex_division: Annotated[int, Limits(minimum=1, maximum=1024)] = 4
    learn_phm: bool = True
    hypercomplex_nonlinearity: Annotated[str, Limits(enum=["glorot-uniform", "glorot-normal", "normal"])] = (
        "glorot-uniform"
    )
    shared_phm_rule: bool = False
    factorized_phm: bool = True
    shared_W_phm: bool = False  # noqa: N815  (the name in OpenDelta)
    factorized_phm_rule: bool = False
    phm_rank: Count = 1
    phm_init_range: Positive = 0.0001
    kronecker_prod: bool | None = None
    use_bias_up_sampler: bool = True
    use_bias_down_sampler: bool = True
    at_input: bool = False

    delta_type: ClassVar[str] = "compacter"

    def to_dict(self) -> dict[str, Any]:
        """Return the delta type and every option, as JSON types; what is off and unknown to older releases is left out."""
        return without_defaults(super().to_dict(), at_input=False)


class HypercomplexBottleneck(HiddenUpdate):
    """An insertion that adds ``up(act(down(h)))`` to the hidden state of a module's output.

    Args:
        like: a tensor with the dtype and device of the new parameters.
        width: size of the hidden state.
        bottleneck: size of the bottleneck.
        where: the module's name, for errors.
    """

    def __init__(self, like: Tensor, width: int, bottleneck: int, config: CompacterConfig, address: str) -> None:
        super().__init__()
        self.down_sampler = HypercomplexLinear(like, width, bottleneck, config, config.use_bias_down_sampler, address)
        self.activation = activation(config.non_linearity)
        self.up_sampler = HypercomplexLinear(like, bottleneck, width, config, config.use_bias_up_sampler, address)

    def update(self, hidden: Tensor) -> Tensor:
        """Compute ``up(act(down(h)))``, both ``(..., width)``."""
        h = hidden.to(torch.promote_types(hidden.dtype, self.down_sampler.dtype))
        result: Tensor = self.up_sampler(self.activation(self.down_sampler(h)).to(h.dtype))
        return result


class HypercomplexInputBottleneck(InputUpdate, HypercomplexBottleneck):
    """A compacter that adds its result to the input of a module."""


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
        layers_to_transform: numbers of the blocks to put the delta on; None for all.
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
        at_input: bool = False,
        layers_to_transform: Sequence[int] | None = None,
        name: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        config = CompacterConfig(
            modified_modules=modified_modules,
            exclude_modules=exclude_modules,
            unfrozen_modules=unfrozen_modules,
            common_structure=common_structure,
            layers_to_transform=layers_to_transform,
            reduction_factor=reduction_factor,
            non_linearity=non_linearity,
            phm_c_init=phm_c_init,
            hypercomplex_division=hypercomplex_division,
            learn_phm=learn_phm,
            hypercomplex_nonlinearity=hypercomplex_nonlinearity,
            shared_phm_rule=shared_phm_rule,
            factorized_phm=factorized_phm,
            shared_W_phm=shared_W_phm,
            factorized_phm_rule=factorized_phm_rule,
            phm_rank=phm_rank,
            phm_init_range=phm_init_range,
            kronecker_prod=kronecker_prod,
            use_bias_up_sampler=use_bias_up_sampler,
            use_bias_down_sampler=use_bias_down_sampler,
            at_input=at_input,
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
        bottleneck = bottleneck_width(width, config.reduction_factor, target.name)
        if config.at_input:
            refuse_parts_at_input(target)
        kind = HypercomplexInputBottleneck if config.at_input else HypercomplexBottleneck
        return kind(like, width, bottleneck, config, target.name)

    @classmethod
    def new_insertions(
        cls, backbone: nn.Module, config: CompacterConfig, targets: Sequence[Target], like: Like
    ) -> Mapping[str, Insertion]:
        """Build a compacter for each module; the first one owns shared tensors, and the others refer to it.

        Raises:
            ConfigError: modules of different widths would have to share weights.
        """
        insertions = super().new_insertions(backbone, config, targets, like)
        first, *others = (layer for insertion in insertions.values() for layer in _bottlenecks(insertion))
        if config.shared_phm_rule:
            for layer in (first.up_sampler, *(s for other in others for s in (other.down_sampler, other.up_sampler))):
                layer.share_rules(first.down_sampler)
        if config.shared_W_phm:
            for other in others:
                other.down_sampler.share_weights(first.down_sampler)
                other.up_sampler.share_weights(first.up_sampler)
        return insertions


def _bottlenecks(insertion: Insertion) -> list[HypercomplexBottleneck]:
    return [member for member in members_of(insertion) if isinstance(member, HypercomplexBottleneck)]
