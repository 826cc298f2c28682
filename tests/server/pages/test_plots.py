"""Plots as coordinates."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.server.pages.norms import VALUES, ModuleNorm
from deltahub.server.pages.plots import HEIGHT, WIDTH, by_series, plot, ticks


def test_modules_that_are_the_same_in_every_block_are_one_line():
    norms = [ModuleNorm(f"h.{at}.{part}", at + 1.0, VALUES, 1) for at in (0, 1) for part in "qv"]
    assert by_series([*norms, ModuleNorm("head", 9.0, VALUES, 1)]) == {
        "h.*.q": {0: 1.0, 1: 2.0},
        "h.*.v": {0: 1.0, 1: 2.0},
    }


def test_larger_norms_are_higher_and_later_blocks_further_right():
    drawn = plot([("q", {0: 1.0, 1: 2.0, 3: 4.0})])
    (xs, ys) = ([dot[at] for dot in drawn.lines[0].dots] for at in (0, 1))
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    assert xs[2] - xs[1] == pytest.approx(2 * (xs[1] - xs[0]), abs=0.2)
    assert drawn.said == "Norms over blocks 0 to 3, 1 lines. The largest is 4, for q in block 3."


def test_of_two_that_are_compared_the_second_is_dashed_and_both_share_a_scale():
    drawn = plot([("left", {0: 1.0}), ("right", {0: 2.0})], compared=True, top=10.0)
    assert [line.dashed for line in drawn.lines] == [False, True]
    assert drawn.y_ticks[-1][1] == "10"


def test_norms_that_are_not_finite_are_left_out():
    drawn = plot([("q", {0: math.nan, 1: math.inf, 2: 1.0})])
    assert [dot[2] for dot in drawn.lines[0].dots] == ["block 2: 1"]
    assert plot([("q", {0: math.nan})]).lines[0].points == ""


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False, width=32))
def test_ticks_cover_the_data_and_are_few(highest):
    found = ticks(highest)
    assert found[0] == 0
    assert found[-1] >= highest * (1 - 1e-6)
    assert 2 <= len(found) <= 7
    assert found == sorted(set(found))


@given(
    st.dictionaries(st.integers(0, 10**6), st.just(math.nan) | st.floats(min_value=0, width=32), max_size=30),
    st.dictionaries(st.integers(0, 50), st.floats(min_value=0, width=32, allow_infinity=False), max_size=30),
)
def test_everything_is_inside_the_plot_area(one, other):
    drawn = plot([("a", one), ("b", other)])
    for line in drawn.lines:
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y, _ in line.dots)
    assert len(drawn.x_ticks) <= 13
