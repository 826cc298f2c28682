"""Grids of parameters: a run takes pairs in turn, or with DELTAHUB_GRIDS_ALL all that there are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

A, B = TypeVar("A"), TypeVar("B")
ALL = "DELTAHUB_GRIDS_ALL" in os.environ


def in_turn(values: Iterable[B], place: int, *, always: Sequence[B] = ()) -> list[B]:
    """The values for one row of a grid: those that every row has, and one of the others."""
    others = [value for value in values if value not in always]
    return [*always, *(others if ALL else [others[place % len(others)]])]


def pairs(rows: Iterable[A], values: Sequence[B], *, always: Sequence[B] = ()) -> list[tuple[A, B]]:
    """Each row with the values that every row has, and with one of the others in turn."""
    return [(row, value) for place, row in enumerate(rows) for value in in_turn(values, place, always=always)]
