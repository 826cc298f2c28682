"""Token buckets: how often each of many callers may do something.

A bucket holds `burst` drops at most and gains `rate` of them a second; what is done takes one. (J. Turner, "New directions in
communications", IEEE Communications Magazine 24(10), 1986.)
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

_LARGEST: Final = 50_000  # callers; the one that was seen longest ago is forgotten, and starts with a full bucket


class Buckets:
    """One bucket for each caller.

    Args:
        rate: drops a second.
        burst: drops in a full bucket.
        clock: seconds that never go back.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst = rate, burst
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # drops, and when that was

    def wait(self, key: str) -> int:
        """Whole seconds until a caller may go on; 0 if they may now. Nothing is taken."""
        return max(0, math.ceil((1 - self._drops(key)) / self.rate))

    def take(self, key: str) -> int:
        """Take a drop if there is one.

        Returns:
            0, or the whole seconds until there is one.
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
