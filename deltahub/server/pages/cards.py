"""Cache of rendered cards: each is rendered once, from a bounded queue, by a process killed when it takes too long.

`card_worker` is the program of that process.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Final

from markupsafe import Markup

from deltahub.files.sized_cache import SizedCache
from deltahub.server.pages.card import Card
from deltahub.stores.retry import CARD_TIMEOUT, RENDER_TIMEOUT

_LARGEST: Final = 4 << 20  # bytes of an answer
_PASSED_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT")  # environment variables; secrets are not passed on


class CardProcess:
    """Worker process, started with the first card and restarted after it ended. Not thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, line: bytes) -> bytes | None:
        """Return the answer to a line; None if it took too much time or memory."""
        for _ in range(2):  # a process that ended while idle accepts no line
            process = self._running()
            end = threading.Timer(RENDER_TIMEOUT, process.kill)
            end.start()
            try:
                assert process.stdin
                assert process.stdout
                process.stdin.write(line + b"\n")
                process.stdin.flush()
                answer = process.stdout.readline(_LARGEST)
            except OSError:
                self.close()
                continue
            finally:
                end.cancel()
            if answer.endswith(b"\n"):
                return answer
            self.close()
            return None
        return None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):  # unwritten data is discarded
                        pipe.close()
            process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            code = f"import sys; sys.path[:] = {sys.path!r}; from deltahub.server.pages.card_worker import main; main()"
            environment = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(  # noqa: S603  (this Python, and code of our own)
                [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment
            )
        return self._process


_WAITING: Final = 16  # cards in the queue
_KEPT: Final = 16 << 20  # bytes of rendered cards
_REFUSED: Final = 10_000  # cards known to take too long
_MOST_FILES: Final = 1000  # available as images in a card
SLOW: Final = "The card takes too long to render and is not shown. Download README.md to read it."
BUSY: Final = "The card is not rendered yet because others are waiting. Reload the page in a moment."

Key = tuple[str, bytes]  # sha256 of a card, and of the names of the files next to it


class Cards:
    """Rendered cards by digest. Versions with the same card and the same file names share one.

    Args:
        seconds: CPU time limit per card.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds = seconds
        self._process, self._thread = CardProcess(), ThreadPoolExecutor(1, "cards")
        self._lock = threading.Lock()
        self._cache: SizedCache[Key, Card] = SizedCache(_KEPT, lambda card: 1000 + 2 * len(card.html))
        self._queue: dict[Key, Future[Card | None]] = {}
        self._slow: OrderedDict[str, None] = OrderedDict()
        mark = secrets.token_hex(16)  # unguessable for a card, so that it can be replaced in the rendered text
        self._links, self._pictures = f"/{mark}/links/", f"/{mark}/pictures/"
        atexit.register(self._process.close)

    def close(self) -> None:
        """End the process; no further cards may be requested."""
        atexit.unregister(self._process.close)
        self._thread.shutdown()
        self._process.close()

    async def rendered(self, digest: str, text: str, files: Iterable[str]) -> Card | str:
        """Return a rendered card, or the sentence to show instead.

        Args:
            digest: its sha256.
            text: Markdown, optionally after front matter.
            files: names of the files next to it, for images.

        Returns:
            The card; `placed` completes its links.
        """
        names = sorted(files)[:_MOST_FILES]
        key = (digest, sha256("\0".join(names).encode("utf-8", "replace")).digest())
        outcome = self._ask(key, text, names)
        if not isinstance(outcome, Future):
            return outcome
        try:
            async with asyncio.timeout(CARD_TIMEOUT):
                return await asyncio.shield(asyncio.wrap_future(outcome)) or SLOW
        except TimeoutError:
            return BUSY

    def placed(self, card: Card, repository: str, revision: str) -> Card:
        """Return a card whose links point to the files of a version.

        Args:
            repository: its path, e.g. ``"/acme/ner"``.
            revision: e.g. ``"v3"``.
        """
        html = str(card.html).replace(self._links, f"{repository}/blob/{revision}/")
        html = html.replace(self._pictures, f"{repository}/resolve/{revision}/")
        return replace(card, html=Markup(html))  # noqa: S704  (sanitised before; the URLs are the hub's)

    def _ask(self, key: Key, text: str, names: list[str]) -> Card | str | Future[Card | None]:
        with self._lock:
            if card := self._cache.peek(key):
                return card
            if key[0] in self._slow:
                return SLOW
            if key not in self._queue:
                if len(self._queue) >= _WAITING:
                    return BUSY
                self._queue[key] = self._thread.submit(self._render, key, text, names)
            return self._queue[key]

    def _render(self, key: Key, text: str, names: list[str]) -> Card | None:
        job = {
            "text": text,
            "links": self._links,
            "pictures": self._pictures,
            "files": names,
            "seconds": self._seconds,
        }
        card = None
        try:
            if answer := self._process.render(json.dumps(job).encode()):
                result = json.loads(answer)
                facts = tuple((name, value) for name, value in result["facts"])
                card = Card(Markup(result["html"]), facts, result["wrong"])  # noqa: S704  (sanitised by the process)
                self._cache.get(key, lambda: card)
        finally:
            with self._lock:
                self._queue.pop(key, None)
                if card is None:
                    self._slow[key[0]] = None
                    while len(self._slow) > _REFUSED:
                        self._slow.popitem(last=False)
        return card
