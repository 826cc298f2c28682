"""The conditions and order of a search."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from deltahub.errors import ConfigError
from deltahub.files.documents import parse

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

    def to_json(self) -> str:
        """Return the query as a hub of DeltaHub is asked it; without `hidden`, which the hub knows itself."""
        fields = {key: value for key, value in asdict(self).items() if value not in (None, (), "", False)}
        fields.pop("hidden", None)
        metrics = [f"{it.name}{it.comparison}{it.value!r}" for it in self.metrics]
        return json.dumps({**fields, **({"metrics": metrics} if metrics else {})})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: it is nothing of the kind.
        """
        try:
            found: Any = parse(text.encode())
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(_is_field(key, value) for key, value in found.items()):
            msg = "The query for deltas cannot be read. Update deltahub."
            raise ConfigError(msg)
        lists = {key: tuple(value) for key, value in found.items() if isinstance(value, list)}
        metrics = tuple(map(Metric.parse, lists.get("metrics", ())))
        return cls(**{**found, **lists, "metrics": metrics})


def _is_field(key: str, value: object) -> bool:
    if key in ("reverse", "near"):
        return isinstance(value, bool)
    if key in ("tags", "metrics"):
        return isinstance(value, list) and all(isinstance(it, str) for it in value)
    return key in ("text", "delta_type", "author", "sort", "backbone", "fingerprint") and isinstance(value, str)
