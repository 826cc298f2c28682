"""Progress for logs and pipes: an occasional plain line instead of a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import Final

_EVERY: Final = 10.0  # seconds between two lines; shorter work prints none


class PlainProgress:
    """The progress of an operation, printed as plain lines; it is thread-safe.

    Args:
        what: the operation, e.g. ``"Pushing"``.
        amount: formats an amount, e.g. ``"1.2 MB"``.
        total: the total amount, if known.
        unit: added at the end of a line, if amounts are bare numbers.
    """

    def __init__(self, operation: str, amount: Callable[[int], str], total: int | None = None, unit: str = "") -> None:
        self._operation, self._amount, self._unit = operation, amount, unit
        self._done, self._total = 0, total or 0
        self._printed, self._lock = monotonic(), Lock()

    def expect(self, count: int) -> None:
        """Add to the total."""
        with self._lock:
            self._total += count

    def advance(self, count: int) -> None:
        """Add to the amount done."""
        with self._lock:
            self._show(self._done + count)

    def reach(self, count: int, total: int) -> None:
        """Set the amount done and the total."""
        with self._lock:
            self._total = total
            self._show(count)

    def _show(self, count: int) -> None:
        self._done, now = count, monotonic()
        if now - self._printed >= _EVERY:
            self._printed = now
            of = f" of {self._amount(self._total)}" if self._total >= count else ""
            print(f"{self._operation}: {self._amount(count)}{of}{self._unit}", file=sys.stderr, flush=True)  # noqa: T201
