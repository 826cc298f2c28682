"""Deltas found at a place that is not a registry, to be migrated into one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deltahub.errors import DeltaHubError
from deltahub.reference import check_alias, check_tag
from deltahub.registry.amend import MOST_METRICS, is_metric

_OWN: Final = "_"  # starts the names of a tracker's own values


@dataclass(frozen=True)
class Candidate:
    """A folder that may hold a delta.

    Attributes:
        address: its place, for people and as the origin of its version: ``"hf:acme/ner@<commit>"``, ``"runs/7/checkpoint-100"``.
        name: the name to give it in a namespace.
        folder: its folder, or a function that downloads it below an empty folder and returns its folder.
        tags: tags that its place gives it, beside those of its card.
        metrics: results that its place has of it, by name.
        aliases: movable names of it in its place.
        is_version: whether it is one of several versions of that name, in the order of their listing.
    """

    address: str
    name: str
    folder: Path | Callable[[Path], Path]
    tags: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    is_version: bool = False


def usable_metrics(values: Mapping[str, object]) -> dict[str, float]:
    """Return the values that a version can have as metrics, 200 at most: finite numbers with plain names."""
    metrics = {
        name: value for name, value in sorted(values.items()) if not name.startswith(_OWN) and is_metric(name, value)
    }
    return {name: metrics[name] for name in list(metrics)[:MOST_METRICS]}  # type: ignore[misc]


def usable_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that are valid tags."""
    return tuple(tag for tag in tags if _passes(check_tag, tag))


def usable_aliases(aliases: Iterable[str]) -> tuple[str, ...]:
    """Return the texts that are valid aliases."""
    return tuple(alias for alias in aliases if _passes(check_alias, alias))


def _passes(check: Callable[[str], str], text: str) -> bool:
    try:
        check(text)
    except DeltaHubError:
        return False
    return True
