"""The conditions and order of a search."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from deltahub.errors import ConfigError

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@/ -]{0,62}[A-Za-z0-9_.@/-])?")
_METRIC: Final = re.compile(rf"({_NAME.pattern})\s*(>=|<=|!=|==|=|>|<)\s*(\S+)")

SORTS: Final = ("time", "name", "size", "parameters")  # sort keys besides metrics
FACETS: Final = ("delta_type", "author", "backbone", "fingerprint")  # columns with one value per delta


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
        found = _METRIC.fullmatch(text.strip())
        try:
            value = float(found[3]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            msg = f"{text!r} is no condition on a metric: expected a name, one of < <= = != >= > and a number, as in 'accuracy>0.9'."
            raise ConfigError(msg)
        return cls(found[1], found[2].replace("==", "="), value)


@dataclass(frozen=True)
class Query:
    """A search; every field that is set must match.

    Attributes:
        text: words that must all occur in the name, tags, type or backbone.
        tags: tags that the newest version must have.
        delta_type: e.g. ``"lora"``.
        author: who pushed the newest version.
        metrics: conditions on its metrics.
        sort: ``"time"``, ``"name"``, ``"size"``, ``"parameters"`` or a metric; the newest and the largest come first, those
            without the metric last.
        reverse: whether to reverse the order.
        backbone: the backbone's name.
        fingerprint: the backbone's fingerprint, 32 hex digits.
        near: whether to include deltas that do not fit, in a search for deltas that fit a backbone.
        hidden: names to leave out.
    """

    text: str = ""
    tags: tuple[str, ...] = ()
    delta_type: str | None = None
    author: str | None = None
    metrics: tuple[Metric, ...] = ()
    sort: str = "time"
    reverse: bool = False
    backbone: str | None = None
    fingerprint: str | None = None
    near: bool = False
    hidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an invalid sort key.

        Raises:
            ConfigError: `sort` is neither a known key nor a possible metric name.
        """
        if not _NAME.fullmatch(self.sort):
            msg = f"{self.sort!r} is nothing to sort by: expected {', '.join(SORTS)} or a metric such as accuracy."
            raise ConfigError(msg)
