"""Whether the network may be used."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "DELTAHUB_OFFLINE"
_HUGGING_FACE: Final = "HF_HUB_OFFLINE"
_ON: Final = frozenset({"1", "on", "yes", "true"})


def forbidden(*, hub: bool = False) -> str | None:
    """What keeps DeltaHub from using the network, as a clause; None if it may be used.

    `DELTAHUB_OFFLINE` decides if it is set, or else `HF_HUB_OFFLINE`. What asks through the client of Hugging Face obeys both, for
    that client does.

    Args:
        hub: whether that client is to be used.
    """
    own, theirs = os.environ.get(VARIABLE), _on(_HUGGING_FACE)
    if _on(VARIABLE):
        return f"{VARIABLE} is set"
    if theirs and (hub or not own):
        return f"{_HUGGING_FACE} is set"
    return None


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in _ON
