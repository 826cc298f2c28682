"""Token buckets: a rate limit per caller.

A bucket holds at most `burst` tokens and gains `rate` tokens per second; each action takes one. (J. Turner, "New directions in
communications", IEEE Communications Magazine 24(10), 1986.)
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_LARGEST: Final = 50_000  # callers; the least recently seen one is dropped, and starts again with a full bucket


class Buckets:
    """One token bucket per caller.

    Args:
        rate: tokens per second.
        burst: tokens in a full bucket.
        clock: monotonic clock in seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and the time of that count

    def wait(self, key: str) -> int:
        """Return the whole seconds until a caller may proceed, without taking a token; 0 for now."""
        return max(0, math.ceil((1 - self._drops(key)) / self.rate))

    def take(self, key: str) -> int:
        """Take a token if one is left.

        Returns:
            0, or the whole seconds until one is available.
        """
        if seconds := self.wait(key):
            return seconds
        self._left[key] = (self._drops(key) - 1, self._clock())
        self._left.move_to_end(key)
        while len(self._left) > _LARGEST:
            self._left.popitem(last=False)
        return 0

    def _drops(self, key: str) -> float:
        drops, since = self._left.get(key, (self.burst, 0.0))
        return min(self.burst, drops + (self._clock() - since) * self.rate)
