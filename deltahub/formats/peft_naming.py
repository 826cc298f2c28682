"""Names for PEFT that mean the modules of a delta and no others, by its rules (`peft_matching`).

Each choice is held against the names of all modules before it is written: ends of names as people write them where they mean
these modules alone, else whole names, else a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from deltahub.formats.peft_matching import meant

Names = list[str] | str


def target_names(modules: Collection[str], every: Collection[str]) -> Names:
    """The shortest `target_modules` that means some modules alone.

    Args:
        every: the names of all modules.
    """
    last = sorted({module.rpartition(".")[2] for module in modules})
    if not any(name.isdigit() for name in last) and meant(last, every) == set(modules):
        return last
    return whole_names(modules, every)


def whole_names(modules: Collection[str], every: Collection[str]) -> Names:
    """The whole names of some modules; a regular expression where one of them is also the end of another module's."""
    names = sorted(modules)
    return names if meant(names, every) <= set(names) else as_pattern(names)


def as_pattern(modules: Collection[str]) -> str:
    """A regular expression for the whole names of some modules."""
    return "|".join(map(re.escape, sorted(modules)))


def outermost(modules: Iterable[str]) -> list[str]:
    """The modules without those inside another one of them, sorted."""
    kept: list[str] = []
    for module in sorted(modules):
        if not any(module.startswith(f"{outer}.") for outer in kept):
            kept.append(module)
    return kept
