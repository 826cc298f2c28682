"""Documents about callers that a process knows: a request costs no read of the store, and a revocation is seen within seconds."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, TypeVar

LIFETIME: Final = 2.0  # seconds for which what was read is believed
_LARGEST: Final = 10_000  # ids, known and unknown ones, so that nobody can fill the memory with made-up ones
_THREADS: Final = 8
T = TypeVar("T")


class Lookups:
    """The threads that look callers up. They do nothing else, so that no other work that waits for the store holds up a caller.

    Addresses that sent many wrong tokens share one thread of their own: what they make up holds up nobody else either.
    """

    def __init__(self) -> None:
        self.usual = ThreadPoolExecutor(_THREADS, "callers")
        self.suspect = ThreadPoolExecutor(1, "suspect-callers")


class Known(Generic[T]):
    """A view of documents by their id that is seconds old at most.

    Args:
        find: reads the document of an id; None if there is none.
        lookups: the threads in which it is read.
        clock: seconds that never go back.
    """

    def __init__(
        self, find: Callable[[str], T | None], lookups: Lookups, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read_now, self._lookups, self._clock = find, lookups, clock
        self._read: OrderedDict[str, tuple[float, asyncio.Future[T | None]]] = OrderedDict()
        self._there: OrderedDict[str, None] = OrderedDict()  # ids that were found at least once

    async def find(self, number: str, *, suspect: bool = False) -> T | None:
        """The document of an id; None if there is none.

        Args:
            suspect: whether the address that asks sent many wrong ones; then only ids that were found before are looked up at once.

        Raises:
            IntegrityError: the document is damaged.
            StorageError: the store is out of reach; nobody is let in on what was known before.
        """
        now = self._clock()
        known = self._read.get(number)
        if known is None or known[0] <= now or _failed(known[1]):
            usual = not suspect or number in self._there
            pool = self._lookups.usual if usual else self._lookups.suspect
            future = asyncio.get_running_loop().run_in_executor(pool, self._read_now, number)
            known = self._read[number] = (now + LIFETIME, future)
        _touch(self._read, number)
        found = await asyncio.shield(known[1])  # others wait for the same read
        if found is not None:
            self._there.setdefault(number)
            _touch(self._there, number)
        return found

    def forget(self, number: str) -> None:
        """Read the document of an id anew when it is asked for next."""
        self._read.pop(number, None)


def _touch(kept: OrderedDict[str, Any], number: str) -> None:
    kept.move_to_end(number)
    while len(kept) > _LARGEST:
        kept.popitem(last=False)


def _failed(future: asyncio.Future[T | None]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)
