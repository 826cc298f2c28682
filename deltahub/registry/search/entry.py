"""A delta in a catalogue: its newest version, from which every column, word and metric of a search is derived.

Every implementation of a catalogue stores the same, and so does the snapshot of a bucket's journal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from deltahub.checkpoint.foreign import FORMATS as FOREIGN
from deltahub.reference import DeltaPath
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version, option_words

_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")  # the value of a tag that counts as a metric


@dataclass(frozen=True)
class CatalogueEntry:
    """A delta in a catalogue.

    Attributes:
        name: its name with its namespace.
        version: the newest, e.g. ``"v3"``.
        newest: the entry of that version.
        aliases: alias to version.
        versions: the number of versions.
        record: the sha256 of the newest version's `backbone.json`; None without one.
    """

    name: DeltaPath
    version: str
    newest: Version
    aliases: Mapping[str, str]
    versions: int
    record: str | None

    @classmethod
    def of(cls, document: ReferenceDocument, record: str | None) -> Self | None:
        """Return the entry of a document; None for one without versions, removed or renamed."""
        if not document.versions:
            return None
        newest = document.versions[document.latest]
        return cls(document.name, document.latest, newest, document.aliases, len(document.versions), record)

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Build the entry from what `to_dict` returned."""
        return cls(**{**stored, "name": DeltaPath(stored["name"]), "newest": Version.from_dict(stored["newest"])})

    def to_dict(self) -> dict[str, Any]:
        """Return the entry in types of JSON alone."""
        return {**vars(self), "name": str(self.name), "newest": self.newest.to_dict(), "aliases": dict(self.aliases)}

    @property
    def columns(self) -> dict[str, str | int | None]:
        """The values by which a list is sorted, filtered and counted."""
        summary = self.newest.summary
        delta_type = _text(summary.get("delta_type"))
        method = delta_type.rpartition(" ")[2] if delta_type and summary.get("format") in FOREIGN else delta_type
        return {
            "name": self.name,
            "namespace": self.name.namespace,
            "time": self.newest.time,
            "author": self.newest.author,
            "delta_type": method,
            "backbone": _text(summary.get("backbone_checkpoint_name")),
            "fingerprint": _text(summary.get("backbone_hash")),
            "record": self.record,
            "size": _whole(summary.get("size")),
            "parameters": _whole(summary.get("parameters")),
            "versions": self.versions,
        }

    @property
    def words(self) -> str:
        """The text in which words are searched."""
        summary = self.newest.summary
        keys = ("delta_type", "backbone_class", "backbone_checkpoint_name")
        texts = filter(None, (*(_text(summary.get(key)) for key in keys), *option_words(summary)))
        description = _text(summary.get("description")) or ""
        return searchable(" ".join([self.name, *self.newest.tags, *texts, self.newest.message, description]))

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the version; a tag whose value is a number, such as ``accuracy=0.93``, counts as one."""
        pairs = (tag.partition("=") for tag in self.newest.tags)
        tagged = {key: float(value) for key, equals, value in pairs if equals and _NUMBER.fullmatch(value)}
        metrics = self.newest.summary.get("metrics")
        values = {**tagged, **(metrics if isinstance(metrics, dict) else {})}
        numbers = {str(name): _real(value) for name, value in values.items()}
        return {name: number for name, number in numbers.items() if number is not None}


def searchable(text: str) -> str:
    """Return a text as search compares it: in lower case, with '?' for each character that UTF-8 cannot encode."""
    return text.lower().replace("\0", " ").encode(errors="replace").decode()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _real(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
