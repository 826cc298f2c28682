"""Suggestions of known words similar to an unknown one, for "did you mean" messages."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import TypeVar, cast

Word = TypeVar("Word", bound=str)


def closest(word: str, known_words: Iterable[Word], limit: int = 5, cutoff: float = 0.5) -> tuple[Word, ...]:
    """Return the known words most similar to `word`, best first.

    Args:
        limit: the maximum number of words.
        cutoff: the required similarity, from 0 to 1.
    """
    from difflib import get_close_matches  # late import: needed only for errors

    matches = get_close_matches(word, list(dict.fromkeys(known_words)), n=limit, cutoff=cutoff)
    return tuple(cast("list[Word]", matches))


def mistyped(word: str, known_words: Iterable[str], cutoff: float = 0.7) -> tuple[str, ...]:
    """Return the known words that `word` may be with a slip of the hand, in any upper and lower case; itself first if it is known."""
    spellings = {candidate.lower(): candidate for candidate in known_words}
    alike = closest(word.lower(), spellings, limit=len(spellings) or 1, cutoff=cutoff)
    return tuple(
        spellings[candidate]
        for candidate in dict.fromkeys(
            (*alike, *(candidate for candidate in spellings if _is_one_slip(word.lower(), candidate)))
        )
    )


def _is_one_slip(word: str, other: str) -> bool:
    """Return whether one letter was added, left out, taken for another one, or swapped with the next."""
    start = _shared(word, other)
    end = _shared(word[start:][::-1], other[start:][::-1])
    rest, other_rest = word[start : len(word) - end], other[start : len(other) - end]
    return max(len(rest), len(other_rest)) < 2 or (len(rest) == 2 and rest == other_rest[::-1])


def _shared(word: str, other: str) -> int:
    """Return how many letters two words begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(word, other, strict=False)))


def suggest(word: str, known_words: Iterable[str]) -> str:
    """Return a clause with the known word most similar to `word`, or else with all known words."""
    known_words = sorted(known_words)
    matches = closest(word, known_words, limit=1, cutoff=0.6)
    return f"did you mean {matches[0]!r}?" if matches else f"known are: {', '.join(known_words)}."
