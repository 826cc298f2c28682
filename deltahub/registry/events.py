"""Events: the changes of deltas, as their logs have them.

The log of a delta is swapped together with the change itself. So it is the outbox: no event is lost when a process dies, and each has an
id that stays, also when the delta is renamed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from deltahub.files.documents import canonical_json
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Move
from deltahub.registry.following import beginning


@dataclass(frozen=True)
class Event:
    """One change of a delta.

    Attributes:
        id: 32 hex digits; stays the same each time it is sent.
        delta: the delta's name now, ``"namespace/name"``.
        number: its place in the log of the delta, from 0.
        move: the entry of the log.
    """

    id: str
    delta: str
    number: int
    move: Move

    @property
    def text(self) -> str:
        """The change in one sentence, for people."""
        move = self.move
        change = f"{_brief(move.before)} -> {_brief(move.after)}"
        details = [move.reason, f"approved by {', '.join(move.approved)}" if move.approved else ""]
        more = "; ".join(filter(None, details))
        return f"{self.delta}: {move.action} {move.what} ({change}) by {move.author}{f': {more}' if more else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return the event in types of JSON alone."""
        move = {key: value for key, value in self.move.to_dict().items() if key != "request"}
        return {"id": self.id, "delta": self.delta, "number": self.number, **move, "text": self.text}


def identity(document: ReferenceDocument) -> str:
    """Return what stays of a delta when it is renamed: 32 hex digits."""
    name, first = beginning(document)
    return hashlib.sha256(canonical_json([name, asdict(first)])).hexdigest()[:32]


def events_of(document: ReferenceDocument, start: int = 0) -> Iterator[Event]:
    """Iterate over the events of a delta, oldest first.

    Args:
        start: the number of the first one.
    """
    if not document.log or document.moved_to:
        return
    delta = identity(document)
    for number, move in enumerate(document.log[start:], start):
        key = hashlib.sha256(f"{delta} {number}".encode() + canonical_json(move.to_dict())).hexdigest()[:32]
        yield Event(key, document.name, number, move)


def _brief(target: str | None) -> str:
    return target[:19] if target and target.startswith("sha256:") else target or "nothing"
