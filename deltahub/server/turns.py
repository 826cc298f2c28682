"""Taking turns: commits to one repository go one after another in a process, so that none of many loses every race to the others.

Other processes are no part of it. The swap of the reference document decides between them.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class Turns:
    """A lock for each repository, as long as somebody holds it or waits for it. Who waits holds no thread."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, repository: str) -> asyncio.Lock:
        """The lock of a repository, ``"namespace/name"``."""
        lock = self._locks.get(repository)
        if lock is None:
            lock = self._locks[repository] = asyncio.Lock()
        return lock
