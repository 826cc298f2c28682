"""Conversion of chosen modules to addresses: the fewest and shortest that match exactly these modules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from deltahub.checkpoint.address import REGEX_MARK, Address


def short_addresses(chosen: Collection[str], every: Collection[str]) -> list[str]:
    """Return the fewest addresses by last parts that match the chosen modules and no others, in the order of the backbone.

    All ``query`` of twelve blocks are ``["query"]``; those of two blocks are
    ``["0.attention.self.query", "1.attention.self.query"]``.

    Args:
        chosen: real names of modules.
        every: the real names of all modules of the backbone.
    """
    chosen_names, ends = {*chosen}, _ends(every)

    def shortest(name: str) -> str:
        return next((end for end in _tails(name) if ends[end] <= chosen_names), _alone(name))

    return list(dict.fromkeys(shortest(name) for name in every if name in chosen_names))


def patterns_of(names: Iterable[str]) -> list[tuple[str, int]]:
    """Combine names that differ in block numbers, for display, with counts: ``("encoder.layer.0-11.attention", 12)``."""
    numbers_by_pattern: dict[str, list[list[int]]] = {}
    for name in names:
        numbers = [int(part) for part in name.split(".") if part.isdecimal()]
        numbers_by_pattern.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "\0", name), []).append(numbers)
    return [(_filled(pattern, numbers), len(numbers)) for pattern, numbers in numbers_by_pattern.items()]


def _filled(pattern: str, numbers: list[list[int]]) -> str:
    for column in zip(*numbers, strict=True):
        values = sorted({*column})
        is_range = values[-1] - values[0] == len(values) - 1
        listed = ",".join(map(str, values))
        pattern = pattern.replace("\0", f"{values[0]}-{values[-1]}" if is_range and len(values) > 1 else listed, 1)
    return pattern


def _tails(name: str) -> list[str]:
    """Return the endings of a name at dots, shortest first."""
    parts = name.split(".")
    return [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]


def _ends(every: Iterable[str]) -> dict[str, set[str]]:
    """Map each ending of any name to the names that have it."""
    ends: dict[str, set[str]] = {}
    for name in every:
        for tail in _tails(name):
            ends.setdefault(tail, set()).add(name)
    return ends


def _alone(name: str) -> str:
    address = f"{REGEX_MARK}^{re.escape(name)}"
    assert Address(address).matches(name)
    return address
