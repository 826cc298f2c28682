"""Limits on downloads from web servers: sizes, timeouts and attempts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Final, Self

from deltahub.errors import ConfigError

FILE_VARIABLE: Final = "DELTAHUB_MAX_FILE"
TOTAL_VARIABLE: Final = "DELTAHUB_MAX_DOWNLOAD"
_SLOWEST: Final = 10_000  # bytes a second; who is slower is given up
_UNITS: Final = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMGT]?B)?", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """Limits on downloads.

    Attributes:
        file: bytes of one file, or of a whole bundle.
        total: bytes of all files of one delta.
        redirects: maximum number of redirects.
        tries: maximum number of attempts per request.
        connect: connection timeout in seconds.
        answer: seconds without a byte.
        whole: seconds for an answer that is read into memory, and for the head of one that is copied.
        backoff: seconds before the second try; each further wait is twice as long.
        longest: seconds of the longest wait, also of one that the server asks for.
    """

    file: int = 20 * 10**9
    total: int = 50 * 10**9
    redirects: int = 5
    tries: int = 6
    connect: float = 10.0
    answer: float = 60.0
    whole: float = 300.0
    backoff: float = 0.5
    longest: float = 120.0

    def seconds(self, size: int) -> float:
        """Return how long so many bytes may take."""
        return self.whole + size / _SLOWEST

    @classmethod
    def read(cls) -> Self:
        """Read the limits from `DELTAHUB_MAX_FILE` and `DELTAHUB_MAX_DOWNLOAD`, with defaults.

        Raises:
            ConfigError: a value is not a size.
        """
        return cls(file=_size(FILE_VARIABLE, cls.file), total=_size(TOTAL_VARIABLE, cls.total))


def _size(variable: str, usual: int) -> int:
    text = os.environ.get(variable, "").strip()
    if not text:
        return usual
    found = _SIZE.fullmatch(text)
    if found is None:
        msg = f"{variable} is {text!r}; expected a number of bytes, or one with KB, MB, GB or TB, such as 20GB."
        raise ConfigError(msg)
    unit = (found[2] or "").upper()
    return int(found[1]) * _UNITS["" if unit == "B" else unit]
