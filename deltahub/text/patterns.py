r"""Regular expressions from files, matched in linear time by RE2.

The supported syntax has the same meaning in Python's `re` and in RE2. Lookaround, backreferences, possessive and conditional groups
are refused: in an engine that supports them, a pattern of 20 characters can run for ever.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Final, Protocol

from deltahub.errors import AddressError

LONGEST: Final = 1000  # maximum characters of a pattern
MOST: Final = 32  # maximum patterns in one list; each is matched against every module
_LARGEST_PROGRAM: Final = 2000  # maximum instructions of RE2's compiled pattern
_MEMORY: Final = 1 << 19  # maximum bytes of memory for RE2 per pattern
# Syntax that RE2 and Python read differently, without an error in either: counts without a lower bound, POSIX classes.
_AMBIGUOUS: Final = re.compile(r"\{,|\[:")


class UnsupportedPatternError(AddressError):
    """A pattern is valid in Python, but RE2 cannot read it or reads it differently, or it is too large."""


class Match(Protocol):
    """The part of a text matched by a pattern."""

    def start(self) -> int: ...  # noqa: D102
    def end(self) -> int: ...  # noqa: D102
    def group(self, name: str) -> str: ...  # noqa: D102


class Pattern(Protocol):
    """A compiled pattern of `re` or `re2`."""

    def search(self, text: str) -> Match | None: ...  # noqa: D102
    def fullmatch(self, text: str) -> Match | None: ...  # noqa: D102


class LinearPattern:
    """A regular expression matched in time proportional to the text.

    Args:
        text: the expression.
        mark: its prefix in the source text, for messages.

    Raises:
        AddressError: Python or RE2 cannot read it, they read it differently, or it is too large.
    """

    def __init__(self, text: str, mark: str = "") -> None:
        called = f"{mark}{text}"
        if len(text) > LONGEST:
            raise _refused(called, f"it has {len(text)} characters, and {LONGEST} is the limit. Write several patterns")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # "[[" and the like; RE2 refuses ambiguous ones
                re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            remedy = f"Correct what follows {mark!r}." if mark else "Correct it."
            msg = f"{called!r:.200} is not a regular expression: {error}. {remedy}"
            raise AddressError(msg) from error
        if _AMBIGUOUS.search(text):
            raise _refused(called, "{,n} and [: :] are not read alike everywhere. Write {0,n}, or the characters")
        self._compiled = _compile(text, called)

    def search(self, name: str) -> tuple[int, int] | None:
        """Find the leftmost match in a module's name; return its start and end, or None."""
        match = self._compiled.search(_plain(name))
        return None if match is None else (match.start(), match.end())

    def fullmatch(self, name: str) -> Match | None:
        """Match the whole name of a module."""
        return self._compiled.fullmatch(_plain(name))


@lru_cache(maxsize=2048)
def linear(text: str, mark: str = "") -> LinearPattern:
    """Compile a pattern, or return it from the cache.

    Raises:
        AddressError: see `LinearPattern`.
    """
    return LinearPattern(text, mark)


def _compile(text: str, called: str) -> Pattern:
    import re2  # late import: most deltas have no pattern

    options = re2.Options()
    options.log_errors, options.max_mem = False, _MEMORY
    try:
        compiled = re2.compile(text, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else error
        raise _refused(
            called,
            f"it has something that cannot be matched in linear time, such as lookaround or a backreference ({reason}). "
            "Name the modules, and leave others out by exclude_modules",
        ) from error
    if compiled.programsize > _LARGEST_PROGRAM:
        raise _refused(called, "its repetitions make it too large. Use smaller counts")
    pattern: Pattern = compiled
    return pattern


def _plain(name: str) -> str:
    """Refuse names for which the two engines differ in letters or line ends, and return other names unchanged."""
    if name.isascii() and name.isprintable():
        return name
    msg = f"The module name {name!r} is not plain ASCII, and patterns match only such names. Name the modules instead."
    raise AddressError(msg)


def _refused(called: str, reason: str) -> UnsupportedPatternError:
    return UnsupportedPatternError(f"The pattern {called!r:.200} is not supported: {reason}.")
