"""Per-repository locks: commits to one repository run one after another in a process, so that none starves.

Other processes are not covered; compare-and-swap of the reference document decides between them.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """An asyncio lock for each repository, kept while it is held or awaited. Waiting takes no thread."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, repository: str) -> asyncio.Lock:
        """Return the lock of a repository, ``"namespace/name"``."""
        lock = self._locks.get(repository)
        if lock is None:
            lock = self._locks[repository] = asyncio.Lock()
        return lock
