"""Low-rank updates as pairs of factors: sums, norms and reductions that never form the whole matrix.

    update = U D        U: (n_out, r), D: (r, n_in)

    sum         w1 U1 D1 + w2 U2 D2 = [w1 U1, w2 U2] [D1; D2]                    exact, of rank r1 + r2
    reduction   U = Q_u R_u, D^T = Q_d R_d, R_u R_d^T = X S Y^T                  two thin QR, one SVD of (r, r)
                U D = (Q_u X) S (Q_d Y)^T                                        the best update of rank k has its first k terms

Sums and reductions are computed in float64, so that the values rounded to float32 are the same on almost every machine.

A matrix that is not given by factors is approximated by randomised subspace iteration: Halko, Martinsson and Tropp 2011,
"Finding Structure with Randomness", https://arxiv.org/abs/0909.4061, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_OVERSAMPLING: Final = 8  # directions of the sketch beyond the rank
_POWER_ITERATIONS: Final = 2
_CANCELLED: Final = 1e-2  # share of the squared norm below which 1 - kept has too few digits
_PART: Final = 1 << 22  # values
_FIRST_RANK: Final = 16  # the first guess where only an energy is asked for


@dataclass(frozen=True)
class Factors:
    """An update of a weight as a product of two matrices.

    Attributes:
        up: ``(n_out, r)``, with the scale of the update.
        down: ``(r, n_in)``.
    """

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        """The width between the factors, an upper bound of the rank of the product."""
        return len(self.down)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the product, ``(n_out, n_in)``."""
        return len(self.up), self.down.shape[1]

    def dense(self) -> Tensor:
        """Return the product, ``(n_out, n_in)``."""
        return self.up @ self.down

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the factors in another precision, each contiguous."""
        return Factors(self.up.to(dtype).contiguous(), self.down.to(dtype).contiguous())

    def widened(self, rank: int) -> Factors:
        """Return the same update with `rank` columns, at least its own: the others are zero."""
        extra = rank - self.rank
        pad = torch.nn.functional.pad
        return Factors(pad(self.up, (0, extra)), pad(self.down, (0, 0, 0, extra))) if extra else self


@dataclass(frozen=True)
class Reduced:
    """An approximation of an update by one of lower rank.

    Attributes:
        factors: the approximation; both factors hold the square roots of the singular values.
        error: the relative error, ``||update - approximation|| / ||update||`` in the Frobenius norm; 0 for an update of zero.
    """

    factors: Factors
    error: float


def weighted_sum(terms: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return the weighted sum of equally shaped updates, exact, in float64, by concatenating their factors."""
    ups = [weight * term.up.double() for term, weight in zip(terms, weights, strict=True)]
    return Factors(torch.cat(ups, dim=1), torch.cat([term.down.double() for term in terms]))


def reduced(factors: Factors, rank: int | None = None, energy: float | None = None) -> Reduced:
    """Return the best approximation of an update, in float64.

    Args:
        rank: the largest rank; by default the numerical rank, which loses nothing but rounding.
        energy: the share of the squared norm to keep, more than 0 and at most 1; the smallest rank that keeps it is taken.
    """
    left, values, right = _decomposed(factors)
    size = max(1, _count(values, max(factors.shape), rank, energy))
    return Reduced(_balanced(left[:, :size], values[:size], right[:, :size].T), _share(values[size:], values))


def singular_values(factors: Factors) -> Tensor:
    """Return the singular values of an update, largest first, in float64: ``(min(r, n_out, n_in),)``."""
    values: Tensor = torch.linalg.svdvals(_core(factors)[1])
    return values


def norm(factors: Factors) -> float:
    """Return the Frobenius norm of an update."""
    return float(torch.linalg.matrix_norm(_core(factors)[1]))


def inner(first: Factors, second: Factors) -> float:
    """Return the inner product of two equally shaped updates as vectors."""
    product = (first.up.double().T @ second.up.double()) * (first.down.double() @ second.down.double().T)
    return float(product.sum())


def cosine(first: Factors, second: Factors) -> float:
    """Return the cosine of the angle between two equally shaped updates as vectors; NaN if one is zero."""
    norms = norm(first) * norm(second)
    return max(-1.0, min(1.0, inner(first, second) / norms)) if norms else math.nan


def effective_rank(values: Tensor) -> float:
    """Return the exponential of the entropy of the singular values as shares of their sum; 0 for an update of zero.

    Roy and Vetterli 2007, "The Effective Rank: A Measure of Effective Dimensionality".
    """
    shares = values[values > 0] / values.sum()
    return float(torch.exp(-(shares * shares.log()).sum())) if len(shares) else 0.0


def approximated(matrix: Tensor, rank: int | None = None, energy: float | None = None, *, seed: int = 0) -> Reduced:
    """Approximate a matrix by randomised subspace iteration, in its own precision.

    Args:
        matrix: ``(n_out, n_in)``, in float32 or float64.
        rank: the largest rank; by default the smaller side.
        energy: the share of the squared norm to keep; the smallest rank that keeps it is taken.
        seed: of the random sketch.
    """
    smaller = min(matrix.shape)
    guess = min(rank or smaller, smaller) if energy is None else min(_FIRST_RANK, rank or smaller, smaller)
    total = float(torch.linalg.matrix_norm(matrix))
    while True:
        left, values, right = _sketched(matrix, guess + _OVERSAMPLING, seed)
        enough = energy is None or float((values[:guess].double() ** 2).sum()) >= energy * total**2
        if enough or guess >= min(rank or smaller, smaller):
            break
        guess = min(2 * guess, rank or smaller, smaller)
    size = max(1, min(_count(values, max(matrix.shape), guess, None), guess))
    if energy is not None:  # the sketch leaves out a part of the norm, which counts as lost
        captured = (values[:size].double() ** 2).cumsum(0)
        size = min(size, int((captured < energy * total**2).sum()) + 1)
    factors = _balanced(left[:, :size], values[:size], right[:size])
    return Reduced(factors, _residual(matrix, factors, values[:size], total))


def _residual(matrix: Tensor, factors: Factors, values: Tensor, total: float) -> float:
    """Return the relative error of an orthogonal projection of a matrix, given the singular values that it keeps."""
    if not total:
        return 0.0
    lost = 1 - float((values.double() ** 2).sum()) / total**2
    if lost > _CANCELLED:
        return math.sqrt(lost)
    return float(torch.linalg.matrix_norm(torch.addmm(matrix, factors.up, factors.down, alpha=-1))) / total


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither a NaN nor an infinity, a part at a time: a sum of all would copy it in float64."""
    parts = tensor.flatten().split(_PART) if tensor.is_floating_point() else ()  # type: ignore[no-untyped-call]
    return all(math.isfinite(part.sum(dtype=torch.float64)) or bool(torch.isfinite(part).all()) for part in parts)


def _core(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """Return orthonormal bases of both factors and the small matrix between them: the update is ``Q_u core Q_d^T``."""
    left, left_core = torch.linalg.qr(factors.up.double())
    right, right_core = torch.linalg.qr(factors.down.double().T)
    return left, left_core @ right_core.T, right


def _decomposed(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    left, core, right = _core(factors)
    u, values, vt = torch.linalg.svd(core)
    size = len(values)
    return left @ u[:, :size], values, right @ vt[:size].T


def _sketched(matrix: Tensor, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return approximate singular vectors and values of a matrix: ``(n_out, k)``, ``(k,)`` and ``(k, n_in)``."""
    if 2 * width >= min(matrix.shape):  # a sketch of this size costs more than the whole
        u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
        return u, values, vt
    generator = torch.Generator().manual_seed(seed)
    basis = matrix @ torch.randn(matrix.shape[1], width, generator=generator, dtype=matrix.dtype)
    basis = torch.linalg.qr(basis)[0]
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(matrix.T @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    right, core = torch.linalg.qr(matrix.T @ basis)  # basis^T matrix = core^T right^T
    u, values, vt = torch.linalg.svd(core.T)
    return basis @ u, values, vt @ right.T


def _count(values: Tensor, size: int, rank: int | None, energy: float | None) -> int:
    """Return how many singular values to keep; values within rounding of zero never count."""
    if not len(values) or not float(values[0]):
        return 0
    rounding = float(values[0]) * size * torch.finfo(values.dtype).eps
    count = min(int((values > rounding).sum()), rank or len(values))
    if energy is None:
        return count
    tails = (values.double() ** 2).flip(0).cumsum(0).flip(0)  # at k: what is lost if only the first k are kept
    return min(count, int((tails > (1 - energy) * tails[0]).sum()))


def _share(part: Tensor, values: Tensor) -> float:
    """Return the norm of some singular values, relative to all."""
    total = float(torch.linalg.vector_norm(values))
    return float(torch.linalg.vector_norm(part)) / total if total else 0.0


def _balanced(left: Tensor, values: Tensor, right: Tensor) -> Factors:
    """Return factors with the same share of each singular value; their signs do not depend on the library that found them."""
    largest = left.abs().argmax(dim=0, keepdim=True)
    signs = torch.where(left.gather(0, largest) < 0, -1.0, 1.0).to(left.dtype)
    roots = values.sqrt()
    return Factors(left * signs * roots, (signs * roots).T * right)
