"""What a search asks for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from deltahub.errors import ConfigError

_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.@/ -]{0,62}[A-Za-z0-9_.@/-])?")
_METRIC: Final = re.compile(rf"({_NAME.pattern})\s*(>=|<=|!=|==|=|>|<)\s*(\S+)")

SORTS: Final = ("time", "name", "size", "parameters")  # what a list can be sorted by besides metrics
FACETS: Final = ("delta_type", "author", "backbone", "fingerprint")  # columns: what a delta has one of


@dataclass(frozen=True)
class Metric:
    """What a metric of the newest version must be; a delta without that metric never fits.

    Attributes:
        name: e.g. ``"accuracy"``.
        comparison: ``"<"``, ``"<="``, ``"="``, ``"!="``, ``">="`` or ``">"``.
        value: what it is compared with.
    """

    name: str
    comparison: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Read ``"accuracy>0.9"``.

        Raises:
            ConfigError: it is nothing of the kind.
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
    """What to look for; every field that is set must hold.

    Attributes:
        text: words that must all occur in the name, tags, type or backbone.
        tags: tags that the newest version must have.
        delta_type: e.g. ``"lora"``.
        author: who pushed the newest version.
        metrics: what its metrics must be.
        sort: ``"time"``, ``"name"``, ``"size"``, ``"parameters"`` or a metric; the newest and the largest come first, those
            without the metric last.
        reverse: the other way round.
        backbone: what the backbone is called.
        fingerprint: of the backbone, 32 hex digits.
        near: where deltas must fit a backbone, whether those that do not are wanted too.
        hidden: names that are left out.
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
        """Refuse a sort key that can be no metric.

        Raises:
            ConfigError: it is none.
        """
        if not _NAME.fullmatch(self.sort):
            msg = f"{self.sort!r} is nothing to sort by: expected {', '.join(SORTS)} or a metric such as accuracy."
            raise ConfigError(msg)
