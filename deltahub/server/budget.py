"""A bound on the bytes that all requests of one process hold in memory together: bodies that are coming in, lists and answers.

A caller gets a share of it only, so that nobody can take it all by sending many bodies and finishing none.
"""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Final, Self

from starlette.requests import Request

from deltahub.server.access import caller_of
from deltahub.server.addresses import address_of
from deltahub.server.refusals import Refusal

_WAIT: Final = 2  # seconds after which a refused caller should ask again


class Budget:
    """Bytes of memory that callers take and give back. Threads may share one.

    Args:
        total: bytes for all callers together.
        share: bytes that one of them may hold.
    """

    def __init__(self, total: int, share: int) -> None:
        self._total, self._share = total, share
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes that are taken now."""
        return self._held.total()

    def take(self, caller: str, count: int) -> bool:
        """Take bytes for a caller; whether there was room for them."""
        with self._lock:
            if self._held[caller] + count > self._share or self._held.total() + count > self._total:
                return False
            self._held[caller] += count
            return True

    def give_back(self, caller: str, count: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._held[caller] -= count
            if not self._held[caller]:
                del self._held[caller]


class Room:
    """The bytes that one request holds; all are given back at the end of a `with` block.

    Args:
        budget: that they are taken from.
        caller: who holds them.
    """

    def __init__(self, budget: Budget, caller: str) -> None:
        self._budget, self._caller = budget, caller
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def fits(self, size: int) -> bool:
        """Hold `size` bytes from now on, more or fewer than before; whether there was room for more."""
        if size > self._size and not self._budget.take(self._caller, size - self._size):
            return False
        if size < self._size:
            self._budget.give_back(self._caller, self._size - size)
        self._size = size
        return True

    def resize(self, size: int) -> None:
        """Hold `size` bytes from now on.

        Raises:
            Refusal: there is no room for more now.
        """
        if not self.fits(size):
            message = (
                "The hub holds as many bytes of requests as it may at once. Repeat in a moment, with fewer at a time."
            )
            raise Refusal(503, message, headers={"Retry-After": str(_WAIT)})

    def release(self) -> None:
        """Give everything back."""
        self.fits(0)


def room_in(budget: Budget, request: Request) -> Room:
    """Room for what a request holds, counted for its caller: the token, or the address without one."""
    return Room(budget, caller_of(request).name or address_of(request.scope))
