r"""PEFT's rules for which modules a config means.

    target_modules, exclude_modules       a list: whole names and ends of names at a dot; a string: a regular expression for whole names
    feedforward_modules                   a list: any ends of names; a string as above
    modules_to_save                       a list: any ends of names, so that "classifier" means pre_classifier too
    rank_pattern, alpha_pattern           regular expressions for whole names and ends of names at a dot
    layers_to_transform, layers_pattern   numbers of layers, and a regular expression for the list that they are in

All regular expressions are matched in linear time; one that cannot be is a ConfigError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from deltahub.errors import AddressError, ConfigError
from deltahub.patterns import LinearPattern, linear

# The heads that PEFT copies and saves with an adapter for a task, by ends of names, whether or not its config names them.
HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def meant(targets: str | Iterable[str], names: Iterable[str]) -> set[str]:
    """The modules that `target_modules` or `exclude_modules` means."""
    if isinstance(targets, str):
        return {name for name in names if _compiled(targets).fullmatch(name)}
    ends = frozenset(targets)  # a mixture of experts has thousands
    return {name for name in names if any(end in ends for end in _ends(name))}


def saved(targets: Iterable[str], names: Iterable[str]) -> set[str]:
    """The modules that `modules_to_save` means."""
    ends = tuple(targets)
    return {name for name in names if name.endswith(ends)}


def at_input(targets: str | Iterable[str], names: Iterable[str]) -> set[str]:
    """The modules that `feedforward_modules` means: IA3 rescales them at their input."""
    return meant(targets, names) if isinstance(targets, str) else saved(targets, names)


def left_out(targets: Iterable[str], names: Iterable[str]) -> set[str]:
    """The modules on which PEFT puts no adapter because of `modules_to_save`, in which it reads patterns here."""
    patterns = [_compiled(rf"(?:.*\.)?{target}(?:\..*)?") for target in targets]
    return {name for name in names if any(pattern.fullmatch(name) for pattern in patterns)}


def is_in_layers(name: str, layers: int | Iterable[int], patterns: str | Iterable[str]) -> bool:
    """Whether a module is in one of the layers of `layers_to_transform`.

    Args:
        patterns: `layers_pattern`.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    lists = [rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\..*" for pattern in patterns] or [
        r".*?\.[^.]*\.(?P<layer>\d+)\..*"
    ]
    match = next((match for match in (_compiled(text).fullmatch(name) for text in lists) if match), None)
    return match is not None and int(match.group("layer")) in ([layers] if isinstance(layers, int) else layers)


def by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """The value that `rank_pattern` or `alpha_pattern` has for a module: that of the first pattern that matches."""
    for pattern, value in (patterns or {}).items():
        if _compiled(rf"(?:.*\.)?(?:{pattern})").fullmatch(name):
            return value
    return default


def _ends(name: str) -> Iterator[str]:
    """A name and what is left of it after each dot."""
    while True:
        yield name
        _, dot, name = name.partition(".")
        if not dot:
            return


def _compiled(pattern: str) -> LinearPattern:
    try:
        return linear(pattern)
    except AddressError as error:
        msg = f"The adapter's config has a pattern that cannot be used. {error} Load it with PEFT."
        raise ConfigError(msg) from error
