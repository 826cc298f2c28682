"""Known words that look like one that is not known, for messages that say what was perhaps meant."""

from __future__ import annotations

from collections.abc import Iterable


def closest(word: str, known: Iterable[str], limit: int = 5, cutoff: float = 0.5) -> tuple[str, ...]:
    """The known words most like `word`, best first.

    Args:
        limit: at most so many.
        cutoff: how alike they must be, from 0 to 1.
    """
    from difflib import get_close_matches  # late: needed only when something is wrong

    return tuple(get_close_matches(word, list(dict.fromkeys(known)), n=limit, cutoff=cutoff))


def suggest(word: str, known: Iterable[str]) -> str:
    """A half-sentence that names the known word most like `word`, or else all of them."""
    known = sorted(known)
    close = closest(word, known, limit=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(known)}."
