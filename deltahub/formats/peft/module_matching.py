r"""PEFT's rules for matching names in its config to modules.

    target_modules, exclude_modules       a list: full names and ends of names at a dot; a string: a regular expression for full names
    feedforward_modules                   a list: any ends of names; a string as above
    modules_to_save                       a list: any ends of names, so "classifier" also matches pre_classifier
    rank_pattern, alpha_pattern           regular expressions for full names and ends of names at a dot
    layers_to_transform, layers_pattern   numbers of layers, and a regular expression for the list that contains them

All regular expressions are matched in linear time; one that does not allow it is a ConfigError.

Export chooses names that match the modules of a delta and no others. Each choice is checked against the names of all modules: ends of names, as people write them, if they match
these modules alone, else full names, else a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from deltahub.errors import AddressError, ConfigError
from deltahub.text.patterns import LinearPattern, linear

# The heads, by ends of names, that PEFT copies and saves with an adapter for a task even if its config does not name them.
HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def meant(targets: str | Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the modules matched by `target_modules` or `exclude_modules`."""
    if isinstance(targets, str):
        return {name for name in names if _compiled(targets).fullmatch(name)}
    ends = frozenset(targets)  # a mixture of experts has thousands
    lengths = {end.count(".") + 1 for end in ends}
    return {name for name in names if any(_end(name, length) in ends for length in lengths)}


def saved(targets: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the modules matched by `modules_to_save`."""
    ends = tuple(targets)
    return {name for name in names if name.endswith(ends)}


def at_input(targets: str | Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the modules matched by `feedforward_modules`, which IA3 rescales at their input."""
    return meant(targets, names) if isinstance(targets, str) else saved(targets, names)


def left_out(targets: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the modules that PEFT gives no adapter because of `modules_to_save`, whose names it treats as patterns here."""
    patterns = [_compiled(rf"(?:.*\.)?{target}(?:\..*)?") for target in targets]
    return {name for name in names if any(pattern.fullmatch(name) for pattern in patterns)}


def is_in_layers(name: str, layers: int | Iterable[int], patterns: str | Iterable[str]) -> bool:
    """Return whether a module is in one of the layers of `layers_to_transform`.

    Args:
        patterns: the value of `layers_pattern`.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    lists = [rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\..*" for pattern in patterns] or [
        r".*?\.[^.]*\.(?P<layer>\d+)\..*"
    ]
    match = next((match for match in (_compiled(text).fullmatch(name) for text in lists) if match), None)
    return match is not None and int(match.group("layer")) in ([layers] if isinstance(layers, int) else layers)


def by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """Return a module's value in `rank_pattern` or `alpha_pattern`: that of the first matching pattern."""
    for pattern, value in (patterns or {}).items():
        if _compiled(rf"(?:.*\.)?(?:{pattern})").fullmatch(name):
            return value
    return default


def _end(name: str, length: int) -> str:
    """Return the last parts of a name, as many as `length`, or all of them if it has fewer."""
    return ".".join(name.rsplit(".", length)[-length:])


def _compiled(pattern: str) -> LinearPattern:
    try:
        return linear(pattern)
    except AddressError as error:
        msg = f"The adapter's config has a pattern that cannot be used. {error} Load it with PEFT."
        raise ConfigError(msg) from error


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
    """Return the full names of some modules; a regular expression if any is also the end of another module's name."""
    names = sorted(modules)
    return names if meant(names, every) <= set(names) else as_pattern(names)


def as_pattern(modules: Collection[str]) -> str:
    """Build a regular expression for the full names of some modules."""
    return "|".join(map(re.escape, sorted(modules)))


def outermost(modules: Iterable[str]) -> list[str]:
    """Return the modules without those nested in another one, sorted."""
    roots: list[str] = []
    for module in sorted(modules):
        if not any(module.startswith(f"{outer}.") for outer in roots):
            roots.append(module)
    return roots
