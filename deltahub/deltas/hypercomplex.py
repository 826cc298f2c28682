"""A linear layer whose weight is a sum of Kronecker products (Zhang et al. 2021, https://arxiv.org/abs/2102.08597).

y = x H + b        H = sum_i  rule_i (x) W_i        rule: (n, n, n), W: (n, n_in / n, n_out / n)
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from deltahub.errors import ConfigError


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

    def __init__(self, like: Tensor, n_in: int, n_out: int, config: Options, bias: bool, where: str) -> None:
        super().__init__()
        n = config.hypercomplex_division
        for width in (n_in, n_out):
            if width % n:
                msg = (
                    f"hypercomplex_division {n} does not divide {width}, a width of the compacter at {where}. Choose a "
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
            own, theirs = getattr(self, name).shape, getattr(owner, name).shape
            if own != theirs:
                msg = (
                    f"shared_W_phm needs modules of one width: {name} would be {list(own)} at one and {list(theirs)} at "
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
