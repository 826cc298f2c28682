"""A cache that is bounded by the memory its values take, not by their number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SizedCache(Generic[K, V]):
    """Values by key; those used longest ago are forgotten when all together take too much memory.

    Threads may share one. Two that miss the same key at once both make its value.

    Args:
        most: bytes that all values may take together. A value that takes more alone is not kept.
        weigh: about how many bytes a value takes.
    """

    def __init__(self, most: int, weigh: Callable[[V], int]) -> None:
        self._most, self._weigh = most, weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.size = 0

    def peek(self, key: K) -> V | None:
        """The value of a key; None if it is not there."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not there; what `make` raises is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key][0]
        value = make()
        self._keep(key, value)
        return value

    def _keep(self, key: K, value: V) -> None:
        weight = self._weigh(value)
        with self._lock:
            if key in self._values or weight > self._most:
                return
            self._values[key] = (value, weight)
            self.size += weight
            while self.size > self._most:
                self.size -= self._values.popitem(last=False)[1][1]
