"""Amendments to a pushed version: message, metrics, description and card.

The content and its digest stay. Each change is a log entry with the value before and after.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from deltahub.errors import ConfigError
from deltahub.reference import DeltaPath, Digest
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move, Version
from deltahub.registry.registry import Registry

DESCRIPTION: Final = "description"  # in the summary of a version
_LONGEST: Final = 4000  # characters of a message or description
MOST_METRICS: Final = 200
_LONGEST_CARD: Final = 128 << 10  # bytes
_METRIC: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.@/-]{0,127}")


@dataclass(frozen=True)
class Amendment:
    """New values for the details of a version; None leaves a value as it is.

    Attributes:
        message: why this version was pushed.
        metrics: name to value; None removes a metric. Others stay.
        description: a few words on the version.
        card: Markdown; an empty one restores the pushed card.
    """

    message: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    description: str | None = None
    card: str | None = None

    def __post_init__(self) -> None:
        """Validate the texts and the metrics.

        Raises:
            ConfigError: a text is too long, or a metric is not a finite number or has an invalid name.
        """
        for name, text in (("message", self.message), (DESCRIPTION, self.description)):
            if text is not None and len(text) > _LONGEST:
                msg = f"The {name} has {len(text):,} characters; expected {_LONGEST:,} at most. Put the rest into the card."
                raise ConfigError(msg)
        if self.card is not None and len(self.card.encode(errors="replace")) > _LONGEST_CARD:
            msg = f"The card is larger than {_LONGEST_CARD:,} bytes. Shorten it."
            raise ConfigError(msg)
        for name, value in self.metrics.items():
            if not (_METRIC.fullmatch(name) and (value is None or _is_finite(value))):
                msg = f"{name}={value} is not a metric: expected a name and a finite number, such as accuracy=0.93."
                raise ConfigError(msg)


def is_metric(name: str, value: object) -> bool:
    """Return whether a version can have a metric of this name and value."""
    return _METRIC.fullmatch(name) is not None and _is_finite(value)


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def amend(
    registry: Registry,
    path: DeltaPath,
    version: str | None,
    amendment: Amendment,
    stamp: tuple[str, str] | None = None,
) -> tuple[ReferenceDocument, str]:
    """Change the details of a version, and log the changes.

    Args:
        version: a version, alias or digest; None for the newest.
        stamp: the time and the author of the change; None for now and this user.

    Returns:
        The new document and the version's number.

    Raises:
        NotFoundError: the delta or version does not exist.
        ConfigError: the version would have too many metrics.
        StorageError: the registry is not writable.
    """
    name = ""

    def change(document: ReferenceDocument) -> ReferenceDocument:
        nonlocal name
        name = document.resolve(name or version)
        entry = document.versions[name]
        amended = _amended(entry, amendment)
        time, author = stamp or registry.stamp()
        before, after = _facts(entry), _facts(amended)
        moves = [
            Move(time, author, "amend", name, _said(key, before.get(key)), _said(key, after.get(key)))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]
        return document.with_amended(name, amended, moves) if moves else document

    return registry.update(path, change), name


def _amended(entry: Version, amendment: Amendment) -> Version:
    summary = dict(entry.summary)
    if amendment.metrics:
        metrics = {**summary.get("metrics", {}), **amendment.metrics}
        summary["metrics"] = {name: value for name, value in metrics.items() if value is not None}
        if len(summary["metrics"]) > MOST_METRICS:
            msg = f"The version would have {len(summary['metrics'])} metrics, and {MOST_METRICS} are the most. Put the rest into the card."
            raise ConfigError(msg)
    if amendment.description is not None:
        summary[DESCRIPTION] = stamps.text(amendment.description)
        if not amendment.description:
            del summary[DESCRIPTION]
    message = entry.message if amendment.message is None else stamps.text(amendment.message)
    card = entry.card if amendment.card is None else stamps.text(amendment.card) or None
    return replace(entry, message=message, summary=summary, card=card)


def _facts(entry: Version) -> dict[str, str]:
    """Return the amendable values by their names in the log; a card by its digest, as the document already has its text."""
    facts = {name: str(value) for name, value in entry.summary.get("metrics", {}).items()}
    texts = {"message": entry.message, DESCRIPTION: entry.summary.get(DESCRIPTION, "")}
    if entry.card is not None:
        texts["card"] = Digest.of(entry.card.encode())
    return {**{f"metric {name}": value for name, value in facts.items()}, **{k: t for k, t in texts.items() if t}}


def _said(key: str, value: str | None) -> str | None:
    return None if value is None else f"{key}: {value}"
