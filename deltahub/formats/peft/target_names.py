"""Names in a PEFT config that match the modules of a delta and no others, by PEFT's rules (`peft_matching`).

Each choice is checked against the names of all modules: ends of names, as people write them, if they match
these modules alone, else full names, else a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from deltahub.formats.peft.module_matching import meant

Names = list[str] | str


def target_names(modules: Collection[str], every: Collection[str]) -> Names:
    """Return the shortest `target_modules` that matches only the given modules.

    Args:
        every: the names of all modules.
    """
    last = sorted({module.rpartition(".")[2] for module in modules})
    if not any(name.isdigit() for name in last) and meant(last, every) == set(modules):
        return last
    return whole_names(modules, every)


def whole_names(modules: Collection[str], every: Collection[str]) -> Names:
    """Return the full names of some modules; a regular expression if one of them is also the end of another module's name."""
    names = sorted(modules)
    return names if meant(names, every) <= set(names) else as_pattern(names)


def as_pattern(modules: Collection[str]) -> str:
    """Build a regular expression for the full names of some modules."""
    return "|".join(map(re.escape, sorted(modules)))


def outermost(modules: Iterable[str]) -> list[str]:
    """Return the modules without those nested in another one, sorted."""
    kept: list[str] = []
    for module in sorted(modules):
        if not any(module.startswith(f"{outer}.") for outer in kept):
            kept.append(module)
    return kept
