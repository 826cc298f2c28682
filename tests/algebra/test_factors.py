"""Sums, norms and reductions of factors agree with the dense computation in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltahub.algebra.factors import (
    Factors,
    approximated,
    cosine,
    effective_rank,
    norm,
    reduced,
    singular_values,
    weighted_sum,
)

SIZES = st.integers(1, 9)
RANKS = st.lists(st.integers(1, 6), min_size=1, max_size=3)
WEIGHTS = st.floats(-2, 2, allow_nan=False).filter(lambda weight: weight == 0 or abs(weight) > 1e-3)


def random_factors(n_out: int, n_in: int, rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(n_out, rank, generator=generator), torch.randn(rank, n_in, generator=generator))


def dense(terms, weights):
    return sum(weight * (term.up.double() @ term.down.double()) for term, weight in zip(terms, weights, strict=True))


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, RANKS, st.data())
def test_a_sum_and_its_reductions_are_those_of_the_dense_matrices(n_out, n_in, ranks, data):
    terms = [random_factors(n_out, n_in, rank, seed) for seed, rank in enumerate(ranks)]
    weights = [data.draw(WEIGHTS) for _ in ranks]
    whole = dense(terms, weights)
    total = weighted_sum(terms, weights)
    rank = data.draw(st.integers(1, 8))
    u, values, vt = torch.linalg.svd(whole, full_matrices=False)
    best = u[:, :rank] * values[:rank] @ vt[:rank]

    assert torch.allclose(total.dense(), whole, atol=1e-12)
    assert total.rank == sum(ranks)
    assert torch.allclose(reduced(total).factors.dense(), whole, atol=1e-9)
    assert reduced(total).factors.rank <= max(1, min(n_out, n_in, sum(ranks)))
    assert norm(total) == pytest.approx(float(whole.norm()), abs=1e-9)
    size = float(whole.norm())
    lost = float((whole - best).norm())
    assert reduced(total, rank).error == pytest.approx(lost / size if size else 0.0, abs=1e-9)
    assert float((whole - reduced(total, rank).factors.dense()).norm()) == pytest.approx(lost, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.integers(1, 6), st.floats(0.05, 1))
def test_the_smallest_rank_that_keeps_the_energy_is_taken(n_out, n_in, rank, energy):
    factors = random_factors(n_out, n_in, rank, 3)
    squares = singular_values(factors) ** 2
    kept = reduced(factors, energy=energy)
    size = kept.factors.rank

    assert float(squares[:size].sum()) >= energy * float(squares.sum()) * (1 - 1e-12)
    assert size == 1 or float(squares[: size - 1].sum()) < energy * float(squares.sum()) * (1 + 1e-12)
    assert kept.error**2 <= 1 - energy + 1e-9


def test_a_sum_of_equal_updates_needs_no_higher_rank():
    factors = random_factors(12, 9, 4, 0)
    assert reduced(weighted_sum([factors, factors], [0.5, 0.5])).factors.rank == 4


def test_both_factors_of_a_reduction_have_the_same_norm():
    factors = reduced(random_factors(12, 9, 4, 0)).factors
    assert torch.allclose(factors.up.norm(dim=0), factors.down.norm(dim=1))


def test_an_update_of_zero_stays_one_of_rank_one():
    zero = reduced(Factors(torch.zeros(5, 2), torch.zeros(2, 4)))
    assert (zero.factors.rank, zero.error, float(zero.factors.dense().abs().max())) == (1, 0.0, 0.0)


def test_cosine_is_the_angle_of_the_products_not_of_the_factors():
    first = random_factors(8, 6, 3, 0)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    turned = Factors(first.up @ rotation, rotation.T @ first.down)
    other = random_factors(8, 6, 2, 5)
    expected = torch.cosine_similarity(first.dense().flatten(), other.dense().flatten(), dim=0)

    assert cosine(first, turned) == pytest.approx(1, abs=1e-6)
    assert cosine(first, weighted_sum([first], [-2.0])) == pytest.approx(-1, abs=1e-6)
    assert cosine(first, other) == pytest.approx(float(expected), abs=1e-6)
    assert math.isnan(cosine(first, Factors(torch.zeros(8, 1), torch.zeros(1, 6))))


def test_the_effective_rank_counts_equal_directions():
    assert effective_rank(torch.ones(5)) == pytest.approx(5)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert effective_rank(torch.zeros(3)) == 0


@pytest.mark.parametrize(("n_out", "n_in"), [(120, 90), (90, 120), (10, 12)])
def test_a_sketch_is_nearly_as_good_as_the_whole_decomposition(n_out, n_in):
    generator = torch.Generator().manual_seed(0)
    matrix = random_factors(n_out, n_in, 8, 1).dense() + 0.1 * torch.randn(n_out, n_in, generator=generator)
    lost = float(torch.linalg.svdvals(matrix)[8:].norm() / matrix.norm())
    sketch = approximated(matrix, 8)
    again = approximated(matrix, 8)

    assert sketch.factors.rank == 8
    assert lost * (1 - 1e-5) <= sketch.error <= 1.001 * lost
    assert torch.equal(sketch.factors.up, again.factors.up)


def test_a_sketch_grows_until_it_keeps_the_energy():
    matrix = random_factors(150, 140, 40, 1).dense()
    sketch = approximated(matrix, energy=0.95)

    assert sketch.error**2 <= 0.05
    assert 16 < sketch.factors.rank < 40
    assert approximated(matrix, rank=20, energy=0.95).factors.rank == 20
    assert approximated(matrix, energy=1.0).error < 1e-5
    assert approximated(torch.zeros(4, 3), 2).error == 0
