"""Environment switches that forbid the use of the network."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "DELTAHUB_OFFLINE"
_HUGGING_FACE: Final = "HF_HUB_OFFLINE"
_ON: Final = frozenset({"1", "on", "yes", "true"})


def forbidden(*, hub: bool = False) -> str | None:
    """Return the reason not to use the network, as a clause; None if it may be used.

    `DELTAHUB_OFFLINE` decides if it is set, or else `HF_HUB_OFFLINE`. Requests through the client of Hugging Face obey both, because
    that client obeys its own variable.

    Args:
        hub: whether the client of Hugging Face is used.
    """
    own, theirs = os.environ.get(VARIABLE), _on(_HUGGING_FACE)
    if _on(VARIABLE):
        return f"{VARIABLE} is set"
    if theirs and (hub or not own):
        return f"{_HUGGING_FACE} is set"
    return None


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in _ON
