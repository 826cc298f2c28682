"""Conditions on the metrics of a version."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from deltahub.errors import ConfigError

NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@/ -]{0,62}[A-Za-z0-9_.@/-])?")
_METRIC: Final = re.compile(rf"({NAME.pattern})\s*(>=|<=|!=|==|=|>|<)\s*(\S+)")
_HOLDS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Metric:
    """A condition on a metric of the newest version; a delta without the metric never matches.

    Attributes:
        name: e.g. ``"accuracy"``.
        comparison: ``"<"``, ``"<="``, ``"="``, ``"!="``, ``">="`` or ``">"``.
        value: the value to compare with.
    """

    name: str
    comparison: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Parse a condition such as ``"accuracy>0.9"``.

        Raises:
            ConfigError: it is not a condition on a metric.
        """
        match = _METRIC.fullmatch(text.strip())
        try:
            value = float(match[3]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not math.isfinite(value):
            msg = f"{text!r} is not a condition on a metric: expected a name, one of < <= = != >= > and a number, as in 'accuracy>0.9'."
            raise ConfigError(msg)
        return cls(match[1], match[2].replace("==", "="), value)

    def holds(self, value: Any) -> bool:
        """Return whether a value meets the condition; one that is not a number never does."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and _HOLDS[self.comparison](value, self.value)
