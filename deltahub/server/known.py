"""The tokens that a process knows: a request costs no read of the store, and a revocation is seen within seconds."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from deltahub.server.tokens import Token, Tokens, holder, id_of

LIFETIME: Final = 2.0  # seconds for which what was read is believed
_LARGEST: Final = 10_000  # ids, known and unknown ones, so that nobody can fill the memory with made-up ones


class KnownTokens:
    """A view of a hub's tokens that is seconds old at most.

    Args:
        tokens: of the hub.
        clock: seconds that never go back.
    """

    def __init__(self, tokens: Tokens, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._read: OrderedDict[str, tuple[float, asyncio.Task[Token | None]]] = OrderedDict()

    async def holder_of(self, secret: str) -> Token | None:
        """The token that a secret belongs to, even if it is not valid any more; None if it belongs to none.

        Raises:
            IntegrityError: the token's document is damaged.
            StorageError: the store is out of reach; nobody is let in on what was known before.
        """
        number = id_of(secret)
        return holder(await self._find(number), secret) if number else None

    async def _find(self, number: str) -> Token | None:
        now = self._clock()
        known = self._read.get(number)
        if known is None or known[0] <= now or _failed(known[1]):
            task = asyncio.create_task(asyncio.to_thread(self._tokens.find, number))
            known = self._read[number] = (now + LIFETIME, task)
        self._read.move_to_end(number)
        while len(self._read) > _LARGEST:
            self._read.popitem(last=False)
        return await asyncio.shield(known[1])  # others wait for the same read


def _failed(task: asyncio.Task[Token | None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
