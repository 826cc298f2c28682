"""Name-based addressing of modules by patterns.

    "query"                       the last parts of a name: `encoder.layer.0.attention.self.query`, not `my_query`
    "0.attention.self.query"      as many parts as needed to tell modules apart
    "[r]layer\\.[0-5]\\.output"     a regular expression that must end where the name ends and start at a part
    "all-linear"                  every linear layer but the output head, by the modules and not by their names

Names are those of `named_modules()`. The rules are those of OpenDelta (Ding et al. 2022, https://arxiv.org/abs/2203.06904)
with one difference: a pattern that matches nothing is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from deltahub.errors import AddressError
from deltahub.text.patterns import MOST, linear
from deltahub.text.suggestions import closest

REGEX_MARK: Final = "[r]"
ALL_LINEAR: Final = "all-linear"  # every linear layer but the output head
T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """One pattern to match against names.

    Args:
        pattern: a name's last parts, or ``[r]`` and a regular expression.
    """

    pattern: str

    def matches(self, name: str) -> bool:
        """Return whether the address matches `name`.

        Args:
            name: a dotted module name, e.g. ``"encoder.layer.0.attention"``.

        Raises:
            AddressError: the regular expression is invalid, or cannot be matched in linear time.
        """
        if self.pattern.startswith(REGEX_MARK):
            # Only the leftmost match counts, as in OpenDelta: "[r][0-5]\.attention" does not match "10.attention".
            span = linear(self.pattern.removeprefix(REGEX_MARK), REGEX_MARK).search(name)
            return span is not None and span[0] < span[1] and _is_tail(name, *span)
        return self.pattern != "" and name.endswith(self.pattern) and _is_tail(name, len(name) - len(self.pattern))


def value_for(patterns: Mapping[str, T], name: str, default: T) -> T:
    """Look up a module's value by address: the value of its full name, else of the first address that matches it.

    Args:
        patterns: address to value.
        name: the name of the module.
        default: the value if no address matches.
    """
    if not patterns:
        return default
    if name in patterns:
        return patterns[name]
    return next((value for pattern, value in patterns.items() if Address(pattern).matches(name)), default)


def exact_addresses(chosen: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Return for each chosen module an address that matches no other module: its name, unless other names end with it.

    Args:
        chosen: names of modules.
        names: the names of all modules.
    """
    chosen = tuple(chosen)
    lengths = {name.count(".") + 1 for name in chosen}
    ends = {".".join(name.rsplit(".", length)[1:]) for name in names for length in lengths if name.count(".") >= length}
    return {name: f"{REGEX_MARK}^{re.escape(name)}$" if name in ends else name for name in chosen}


def _is_tail(name: str, start: int, end: int | None = None) -> bool:
    """Return whether `name[start:end]` reaches the end of the name and begins at a part."""
    return (end is None or end == len(name)) and (start == 0 or name[start - 1] == ".")


def check_patterns(patterns: Iterable[str]) -> None:
    """Refuse regular expressions that cannot be matched, or too many regular expressions.

    Raises:
        AddressError: one cannot be matched, or there are too many.
    """
    expressions = [pattern.removeprefix(REGEX_MARK) for pattern in patterns if pattern.startswith(REGEX_MARK)]
    if len(expressions) > MOST:
        msg = f"There are {len(expressions)} regular expressions in one list, and {MOST} is the limit. Join them by |."
        raise AddressError(msg)
    for expression in expressions:
        linear(expression, REGEX_MARK)


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the patterns matches `name`."""
    return any(Address(pattern).matches(name) for pattern in patterns)


def lies_within(name: str, patterns: Iterable[str]) -> bool:
    """Return whether one of the patterns matches `name` or a module that contains it."""
    inside = f".{name}."
    for pattern in patterns:
        if pattern.startswith(REGEX_MARK):
            ends = [index for index, char in enumerate(name) if char == "."]
            if any(Address(pattern).matches(name[:end]) for end in (*ends, len(name))):
                return True
        elif pattern and f".{pattern}." in inside:  # the parts of the pattern, anywhere in the name
            return True
    return False


def nearest_names(pattern: str, names: Iterable[str], limit: int = 5) -> tuple[str, ...]:
    """Return the names most similar to `pattern`, cut to its number of parts; best first."""
    path = pattern.removeprefix(REGEX_MARK)
    parts = path.count(".") + 1
    tails = dict.fromkeys(".".join(name.split(".")[-parts:]) for name in names if name)
    return closest(path, tails, limit)


def rank_and_scale(document: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Return the rank of a LoRA's update at a module, and the factor of ``B A``, by the config of the delta.

    Args:
        document: the config.
        module: the real name of the module.
    """
    rank = int(value_for(document.get("rank_pattern") or {}, module, document.get("lora_r", 8)))
    alpha = float(value_for(document.get("alpha_pattern") or {}, module, document.get("lora_alpha", 16)))
    return rank, alpha / (math.sqrt(rank) if document.get("use_rslora") else rank)
