"""Suggestions of known words similar to an unknown one, for "did you mean" messages."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile


def closest(word: str, known: Iterable[str], limit: int = 5, cutoff: float = 0.5) -> tuple[str, ...]:
    """Return the known words most similar to `word`, best first.

    Args:
        limit: the maximum number of words.
        cutoff: the required similarity, from 0 to 1.
    """
    from difflib import get_close_matches  # late import: needed only for errors

    return tuple(get_close_matches(word, list(dict.fromkeys(known)), n=limit, cutoff=cutoff))


def mistyped(word: str, known: Iterable[str], cutoff: float = 0.7) -> tuple[str, ...]:
    """Return the known words that `word` may be with a slip of the hand, in any upper and lower case; itself first if it is known."""
    written = {it.lower(): it for it in known}
    alike = closest(word.lower(), written, limit=len(written) or 1, cutoff=cutoff)
    return tuple(written[it] for it in dict.fromkeys((*alike, *(it for it in written if _one_slip(word.lower(), it)))))


def _one_slip(word: str, other: str) -> bool:
    """Return whether one letter was added, left out, taken for another one, or swapped with the next."""
    start = _shared(word, other)
    end = _shared(word[start:][::-1], other[start:][::-1])
    rest, others = word[start : len(word) - end], other[start : len(other) - end]
    return max(len(rest), len(others)) < 2 or (len(rest) == 2 and rest == others[::-1])


def _shared(word: str, other: str) -> int:
    """Return how many letters two words begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(word, other, strict=False)))


def suggest(word: str, known: Iterable[str]) -> str:
    """Return a clause with the known word most similar to `word`, or else with all known words."""
    known = sorted(known)
    close = closest(word, known, limit=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}."
