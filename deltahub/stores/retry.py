"""Retries of a compare-and-swap that lost a race; how often each operation is tried, and how long it may take."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from deltahub.errors import ConflictError

SWAP_ATTEMPTS: Final = 20  # each after reading again
S3_ATTEMPTS: Final = 3  # of a write whose answer was lost
CACHE_ATTEMPTS: Final = 10  # to place a delta while other processes keep removing it
READ_ATTEMPTS: Final = 5  # to read a delta; one removed when it was marked as being read moves away and back once
HUB_ATTEMPTS: Final = 5  # while the hub is busy
CONNECT_ATTEMPTS: Final = 2  # for an unknown host or a refused connection

# In seconds.
HUB_TIMEOUT: Final = 60.0  # of a connection to a hub without a byte
HUB_ANSWER_TIMEOUT: Final = 300.0  # for a whole answer of a hub, without the bytes of files
INDEX_TIMEOUT: Final = 30.0  # for another process to write the search index
READINESS_TIMEOUT: Final = 5.0  # for the store of a served registry to answer a check
RENDER_TIMEOUT: Final = 30.0  # for one card and the start of the process that renders it, on a busy machine
CARD_TIMEOUT: Final = 10.0  # for a page to wait for its card


class SwapRetry:
    """Context manager around a compare-and-swap: a lost race is suppressed until all attempts are used up.

    The loop reads, changes and swaps again, on top of the winner's document::

        retry = SwapRetry()
        while True:
            data, etag = read()
            changed = change(data)
            with retry:
                store.swap(key, changed, etag)
                return changed

    Args:
        lost: the error that means a lost race; that of the last attempt is raised.
    """

    def __init__(self, lost: type[Exception] = ConflictError) -> None:
        self._lost = lost
        self._left = SWAP_ATTEMPTS

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, self._lost):
            return False
        self._left -= 1
        return self._left > 0
