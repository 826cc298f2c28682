"""A cache bounded by the memory of its values, not by their number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SizedCache(Generic[K, V]):
    """Values by key, with eviction of the least recently used ones when their total size is too large.

    It is thread-safe. Two threads that miss the same key at once both make its value.

    Args:
        most: maximum total bytes of all values. A larger single value is not kept.
        weigh: returns the approximate bytes of a value.
    """

    def __init__(self, most: int, weigh: Callable[[V], int]) -> None:
        self._most, self._weigh = most, weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.size = 0

    def peek(self, key: K) -> V | None:
        """Return the value of a key; None if it is missing."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key, made on a miss; an exception of `make` is not cached."""
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
