"""Memory budget for all requests of a process: incoming bodies, lists and answers.

A caller gets only a share, so that one cannot use it up with many unfinished bodies.
"""

from __future__ import annotations

import threading
from collections import Counter
from types import TracebackType
from typing import Final, Self

from starlette.requests import Request

from deltahub.server.access import caller_of
from deltahub.server.addresses import address_of
from deltahub.server.errors import Refusal

_WAIT: Final = 2  # Retry-After in seconds for a refused caller


class Budget:
    """Thread-safe memory budget shared by callers.

    Args:
        total: bytes for all callers together.
        share: bytes that one caller may hold.
    """

    def __init__(self, total: int, share: int) -> None:
        self._total, self._share = total, share
        self._lock = threading.Lock()
        self._bytes: Counter[str] = Counter()

    @property
    def bytes_in_use(self) -> int:
        """Bytes in use now."""
        return self._bytes.total()

    def take(self, caller: str, count: int) -> bool:
        """Reserve bytes for a caller; return whether they were available."""
        with self._lock:
            if self._bytes[caller] + count > self._share or self._bytes.total() + count > self._total:
                return False
            self._bytes[caller] += count
            return True

    def release_bytes(self, caller: str, count: int) -> None:
        """Return reserved bytes to the budget."""
        with self._lock:
            self._bytes[caller] -= count
            if not self._bytes[caller]:
                del self._bytes[caller]


class Reservation:
    """The bytes reserved by one request; a `with` block releases them at its end.

    Args:
        budget: the budget they are taken from.
        caller: the caller they count for.
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
        """Set the reservation to `size` bytes; return whether they were available."""
        if size > self._size and not self._budget.take(self._caller, size - self._size):
            return False
        if size < self._size:
            self._budget.release_bytes(self._caller, self._size - size)
        self._size = size
        return True

    def resize(self, size: int) -> None:
        """Set the reservation to `size` bytes.

        Raises:
            Refusal: the budget has too little left.
        """
        if not self.fits(size):
            message = (
                "The hub holds as many bytes of requests as it may at once. Repeat in a moment, with fewer at a time."
            )
            raise Refusal(503, message, headers={"Retry-After": str(_WAIT)})

    def release(self) -> None:
        """Release all bytes."""
        self.fits(0)


def reservation_in(budget: Budget, request: Request) -> Reservation:
    """Return a reservation for a request, counted for its token, or for its address without a token."""
    return Reservation(budget, caller_of(request).name or address_of(request.scope))
