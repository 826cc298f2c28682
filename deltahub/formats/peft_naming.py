"""Names for PEFT that mean the modules of a delta and no others, by PEFT's own rules.

    target_modules       a list: whole names and ends of names at a dot; a string: a regular expression for whole names
    feedforward_modules  a list: any ends of names; a string as above
    modules_to_save      a list: any ends of names, so that "classifier" means pre_classifier too

Each choice is held against the names of all modules before it is written: ends of names as people write them where they mean
these modules alone, else whole names, else a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

Names = list[str] | str


def target_names(modules: Collection[str], every: Collection[str]) -> Names:
    """The shortest `target_modules` that means some modules alone.

    Args:
        every: the names of all modules.
    """
    last = sorted({module.rpartition(".")[2] for module in modules})
    if not any(name.isdigit() for name in last) and targeted(last, every) == set(modules):
        return last
    return whole_names(modules, every)


def whole_names(modules: Collection[str], every: Collection[str]) -> Names:
    """The whole names of some modules; a regular expression where one of them is also the end of another module's."""
    names = sorted(modules)
    return names if targeted(names, every) <= set(names) else as_pattern(names)


def as_pattern(modules: Collection[str]) -> str:
    """A regular expression for the whole names of some modules."""
    return "|".join(map(re.escape, sorted(modules)))


def targeted(names: Names, every: Iterable[str]) -> set[str]:
    """The modules that `target_modules` means in PEFT."""
    if isinstance(names, str):
        return {module for module in every if re.fullmatch(names, module)}
    ends = tuple(f".{name}" for name in names)
    return {module for module in every if module in names or module.endswith(ends)}


def saved(names: Iterable[str], every: Iterable[str]) -> set[str]:
    """The modules that `modules_to_save` means in PEFT."""
    ends = tuple(names)
    return {module for module in every if module.endswith(ends)} if ends else set()


def left_out(names: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Those of some target modules that PEFT leaves out because of `modules_to_save`, in which it reads patterns."""
    patterns = [re.compile(rf"(^|.*\.){name}($|\..*)") for name in names]
    return {module for module in modules if any(pattern.match(module) for pattern in patterns)}


def outermost(modules: Iterable[str]) -> list[str]:
    """The modules without those inside another one of them, sorted."""
    kept: list[str] = []
    for module in sorted(modules):
        if not any(module.startswith(f"{outer}.") for outer in kept):
            kept.append(module)
    return kept
