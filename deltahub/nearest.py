"""Suggestions of known words similar to an unknown one, for "did you mean" messages."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, known: Iterable[str], limit: int = 5, cutoff: float = 0.5) -> tuple[str, ...]:
    """Return the known words most similar to `word`, best first.

    Args:
        limit: the maximum number of words.
        cutoff: the required similarity, from 0 to 1.
    """
    from difflib import get_close_matches  # late import: needed only for errors

    return tuple(get_close_matches(word, list(dict.fromkeys(known)), n=limit, cutoff=cutoff))


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a clause with the known word most similar to `word`, or else with all known words."""
    known = sorted(known)
    close = closest(word, known, limit=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}."
