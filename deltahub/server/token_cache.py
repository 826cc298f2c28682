"""Cache of caller documents: requests need no store read, and a revocation takes effect within seconds."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

LIFETIME: Final = 2.0  # cache TTL in seconds
_LARGEST: Final = 10_000  # ids, existing or not, so that made-up ones cannot fill the memory
_THREADS: Final = 8
T = TypeVar("T")


class Lookups:
    """Thread pools for caller lookups only, so that other work that waits for the store cannot delay them.

    Addresses that sent many invalid tokens share one separate thread: their made-up tokens cannot delay other callers.
    """

    def __init__(self) -> None:
        self.usual = ThreadPoolExecutor(_THREADS, "callers")
        self.suspect = ThreadPoolExecutor(1, "suspect-callers")


class Known(Generic[T]):
    """Read-through cache of documents by id, at most seconds old.

    Args:
        find: reads the document of an id; None if it does not exist.
        lookups: the thread pools that run `find`.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, find: Callable[[str], T | None], lookups: Lookups, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read_now, self._lookups, self._clock = find, lookups, clock
        self._read: OrderedDict[str, tuple[float, asyncio.Future[T | None]]] = OrderedDict()
        self._there: OrderedDict[str, None] = OrderedDict()  # ids found at least once

    async def find(self, number: str, *, suspect: bool = False) -> T | None:
        """Return the document of an id; None if it does not exist.

        Args:
            suspect: whether the client address sent many invalid ids; then only ids found before use the usual thread pool.

        Raises:
            IntegrityError: the document is damaged.
            StorageError: the store is unreachable; an expired cache entry admits no caller.
        """
        now = self._clock()
        known = self._read.get(number)
        if known is None or known[0] <= now or _failed(known[1]):
            usual = not suspect or number in self._there
            pool = self._lookups.usual if usual else self._lookups.suspect
            future = asyncio.get_running_loop().run_in_executor(pool, self._read_now, number)
            known = self._read[number] = (now + LIFETIME, future)
        _touch(self._read, number)
        found = await asyncio.shield(known[1])  # concurrent callers share one read
        if found is not None:
            self._there.setdefault(number)
            _touch(self._there, number)
        return found

    def forget(self, number: str) -> None:
        """Drop the cached document of an id."""
        self._read.pop(number, None)


def _touch(kept: OrderedDict[str, Any], number: str) -> None:
    kept.move_to_end(number)
    while len(kept) > _LARGEST:
        kept.popitem(last=False)


def _failed(future: asyncio.Future[T | None]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
