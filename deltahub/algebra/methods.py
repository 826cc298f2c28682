"""The methods of combining updates, as formulas for one module.

    linear, cat   sum_i w_i U_i                          task arithmetic: Ilharco et al. 2023, https://arxiv.org/abs/2212.04089
    svd           the same, of a lower rank
    slerp         sin((1-t) a) / sin a U_1 + sin(t a) / sin a U_2       a: the angle between U_1 and U_2, t = w_2 / (w_1 + w_2)
    ties          sum_i w_i T_i / sum_i |w_i|            over the i whose T_i has the sign of sum_j w_j T_j; T_i: the largest
                                                         values of U_i, the others zero
                                                         Yadav et al. 2023, https://arxiv.org/abs/2306.01708
    dare          sum_i w_i M_i * U_i / density          M_i: random, 1 with probability density, else 0
                                                         Yu et al. 2024, https://arxiv.org/abs/2311.03099

U_i is the update of a weight, for LoRA the product with its scale, never a factor of it. The first three and slerp are sums of updates,
so they are exact on factors. ties and dare act on single values of a product; their result has a full rank and is approximated.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch
from torch import Tensor

from deltahub.algebra.factors import Factors, Reduced, approximated, cosine, reduced, weighted_sum
from deltahub.errors import ConfigError

_PARALLEL: Final = 1e-6  # below this sine of the angle, slerp is linear


class Method(StrEnum):
    """A method of combining updates."""

    LINEAR = "linear"
    CAT = "cat"
    SVD = "svd"
    SLERP = "slerp"
    TIES = "ties"
    DARE = "dare"


_DENSITIES: Final = {Method.TIES: 0.2, Method.DARE: 0.5}  # 0.2 as in the paper of TIES


@dataclass(frozen=True)
class Recipe:
    """A method with its parameters.

    Attributes:
        method: the method.
        weights: one for each delta.
        rank: the largest rank of a result; None for the method's own.
        energy: the share of the squared norm that a result keeps; None for the whole.
        density: the share of values that ties and dare keep; None for other methods.
        seed: of the random values of dare.
    """

    method: Method
    weights: tuple[float, ...]
    rank: int | None = None
    energy: float | None = None
    density: float | None = None
    seed: int = 0

    @classmethod
    def checked(
        cls,
        method: str,
        count: int,
        weights: Sequence[float] | None = None,
        rank: int | None = None,
        energy: float | None = None,
        density: float | None = None,
        seed: int = 0,
    ) -> Recipe:
        """Check the parameters of a method for `count` deltas, and fill in the defaults.

        Raises:
            ConfigError: a value is invalid, or the method has no such parameter.
        """
        if method not in set(Method):
            msg = f"method is {method!r}; expected one of {', '.join(Method)}."
            raise ConfigError(msg)
        kind = Method(method)
        check_size(rank, energy)
        if kind is Method.CAT and (rank is not None or energy is not None):
            msg = "cat keeps the factors as they are, beside each other, so it takes no rank and no energy. Use linear."
            raise ConfigError(msg)
        if kind is Method.SLERP and count != 2:
            msg = (
                f"slerp is defined between two deltas, and {count} were given. Use linear, or combine them two by two."
            )
            raise ConfigError(msg)
        if density is not None and kind not in _DENSITIES:
            msg = f"{kind} has no density; ties and dare have one. Leave it out."
            raise ConfigError(msg)
        density = _DENSITIES.get(kind) if density is None else density
        if density is not None and not 0 < density <= 1:
            msg = f"density is {density}; expected a share of the values to keep, more than 0 and at most 1."
            raise ConfigError(msg)
        if not 0 <= seed < 2**63:
            msg = f"seed is {seed}; expected a whole number from 0 to 2^63 - 1."
            raise ConfigError(msg)
        return cls(kind, _checked_weights(kind, weights, count), rank, energy, density, seed)

    def parameters(self) -> dict[str, object]:
        """Return the parameters for a record of the operation, as JSON types; those without a meaning are left out."""
        values = {"rank": self.rank, "energy": self.energy, "density": self.density}
        seed = {"seed": self.seed} if self.method is Method.DARE else {}
        known = {key: value for key, value in values.items() if value is not None}
        return {"method": str(self.method), "weights": list(self.weights), **known, **seed}


def check_size(rank: int | None, energy: float | None) -> None:
    """Check the size of a result.

    Raises:
        ConfigError: the rank is not a positive whole number, or the energy not a share.
    """
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        msg = f"rank is {rank!r}; expected a whole number of at least 1."
        raise ConfigError(msg)
    if energy is not None and not 0 < energy <= 1:
        msg = f"energy is {energy!r}; expected a share of the squared norm to keep, more than 0 and at most 1, such as 0.99."
        raise ConfigError(msg)


def _checked_weights(method: Method, weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1 / count,) * count
    if len(weights) != count:
        msg = f"There are {len(weights)} weights for {count} deltas. Give one for each, in their order."
        raise ConfigError(msg)
    values = tuple(map(float, weights))
    if not all(map(math.isfinite, values)) or not any(values):
        msg = f"The weights are {', '.join(map(str, values))}; expected finite numbers, not all zero."
        raise ConfigError(msg)
    if method is Method.SLERP and min(values) < 0:
        msg = "slerp takes weights that are not negative: the second one's share of both is the way from the first to the second."
        raise ConfigError(msg)
    return values


def combined_factors(recipe: Recipe, terms: Sequence[Factors | None], place: str) -> Reduced:
    """Combine the updates of one module.

    Args:
        terms: one for each delta, of one shape; None where a delta does not act, which counts as an update of zero.
        place: the module, for the random values of dare.

    Returns:
        The factors in float64, and the relative error against the exact result of the method.
    """
    present = [term for term in terms if term is not None]
    if recipe.method in (Method.TIES, Method.DARE):
        ranks = sum(term.rank for term in present)
        like = present[0]
        dense = [
            torch.zeros(like.shape, dtype=torch.float64) if term is None else term.to(torch.float64).dense()
            for term in terms
        ]
        whole = combined_values(recipe, dense, place)
        return approximated(whole, recipe.rank or (None if recipe.energy else ranks), recipe.energy)
    weights = recipe.weights if recipe.method is not Method.SLERP else slerp_weights(recipe.weights, _angle(terms))
    pairs = [(term, weight) for term, weight in zip(terms, weights, strict=True) if term is not None]
    total = weighted_sum([term for term, _ in pairs], [weight for _, weight in pairs])
    if recipe.method is Method.CAT:
        return Reduced(total, 0.0)
    rank = recipe.rank
    if recipe.method is Method.SVD and rank is None and recipe.energy is None:
        rank = max(term.rank for term in present)
    return reduced(total, rank, recipe.energy)


def combined_values(recipe: Recipe, terms: Sequence[Tensor], place: str) -> Tensor:
    """Combine updates given by their values, of one shape, in float64.

    Args:
        place: the module, for the random values of dare.
    """
    weights = recipe.weights
    if recipe.method is Method.TIES:
        return _ties(terms, weights, recipe.density or 1.0)
    if recipe.method is Method.DARE:
        terms = [_dropped(term, recipe, f"{number} {place}") for number, term in enumerate(terms)]
    if recipe.method is Method.SLERP:
        norms = [float(term.norm()) for term in terms]
        inner = float((terms[0] * terms[1]).sum())
        weights = slerp_weights(weights, inner / (norms[0] * norms[1]) if all(norms) else math.nan)
    return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)


def slerp_weights(weights: Sequence[float], cosine_between: float) -> tuple[float, float]:
    """Return the factors of both updates in slerp; linear where the updates are parallel or one is zero.

    Args:
        cosine_between: the cosine of the angle between the updates; NaN if one is zero.
    """
    share = weights[1] / (weights[0] + weights[1])
    angle = math.acos(max(-1.0, min(1.0, cosine_between))) if math.isfinite(cosine_between) else 0.0
    if abs(math.sin(angle)) < _PARALLEL:
        return 1 - share, share
    return math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)


def _angle(terms: Sequence[Factors | None]) -> float:
    first, second = terms
    return math.nan if first is None or second is None else cosine(first, second)


def _ties(terms: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    parts = [weight * _trimmed(term, density) for term, weight in zip(terms, weights, strict=True)]
    elected = torch.stack(parts).sum(0).sign()
    total, mass = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        agrees = (part.sign() == elected) & (part != 0)
        total += torch.where(agrees, part, 0)
        mass += torch.where(agrees, abs(weight), 0.0)
    return torch.where(mass > 0, total / mass.clamp_min(torch.finfo(mass.dtype).tiny), 0)


def _trimmed(term: Tensor, density: float) -> Tensor:
    """Return an update with only its largest values, by magnitude; values equal to the smallest kept one are kept too."""
    count = math.ceil(density * term.numel())
    if count >= term.numel():
        return term
    threshold = term.abs().flatten().kthvalue(term.numel() - count + 1).values
    return torch.where(term.abs() >= threshold, term, 0)


def _dropped(term: Tensor, recipe: Recipe, stream: str) -> Tensor:
    """Return an update with a random share of its values, scaled up; each module and delta has random values of its own."""
    density = recipe.density or 1.0
    digest = hashlib.sha256(f"{recipe.seed} {stream}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    kept = torch.rand(term.shape, generator=generator, dtype=torch.float64) < density
    return torch.where(kept, term / density, 0)
