"""A hub that is killed while clients push to it, again and again: what it acknowledged must be there."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.server.tokens import Tokens
from deltahub.stores.local import LocalStore
from tests.server.clients import Client
from tests.server.processes import serving

FILE = "adapter_model.safetensors"


@dataclass
class Killing:
    """Rounds of pushes that end with a kill.

    Attributes:
        root: a folder for the registry and the log.
        content: a file of weights for a number; no two of them are equal.
        clients: how many push at once; every second push goes to a repository that others push to as well.
        seed: of when the hub is killed.
        acknowledged: repository, commit and number of each push that was answered.
        cut: pushes that the kills cut off.
        unexpected: answers that were no acknowledgement.
    """

    root: Path
    content: Callable[[int], bytes]
    clients: int = 4
    workers: int = 1
    seed: int = 0
    acknowledged: list[tuple[str, str, int]] = field(default_factory=list)
    cut: int = 0
    unexpected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        self.store = LocalStore(self.root / "registry")
        self._secret = Tokens(self.store).create("load", "write")[1]
        self._choice, self._number = random.Random(self.seed), 0
        self._lock, self._begun = threading.Lock(), threading.Event()

    def round(self, least: float, most: float) -> None:
        """Serve, let clients push, and kill the hub so many seconds after its first answer."""
        self._begun.clear()
        with serving(
            self.root / "log", "--registry", self.root / "registry", "--workers", self.workers, "--quiet"
        ) as hub:
            threads = [threading.Thread(target=self._push, args=(hub.url, number)) for number in range(self.clients)]
            for thread in threads:
                thread.start()
            self._begun.wait(60)
            threads[0].join(self._choice.uniform(least, most))
            hub.kill()
            for thread in threads:
                thread.join()

    def _push(self, url: str, number: int) -> None:
        try:
            with Client(url, self._secret) as client:
                for turn in range(10_000):
                    repository = f"load/own-{number}" if turn % 2 else f"load/shared-{number % 2}"
                    with self._lock:
                        self._number += 1
                        mine = self._number
                    client.create(repository)
                    commit = client.commit(repository, {FILE: self.content(mine)})
                    self.acknowledged.append((repository, commit, mine))
                    self._begun.set()
        except (OSError, http.client.HTTPException):
            self.cut += 1
        except AssertionError as error:
            self.unexpected.append(str(error))

    def lost(self) -> list[tuple[str, str, int]]:
        """What was acknowledged and cannot be pulled from a hub that starts again."""
        missing = []
        options = ("--registry", self.root / "registry", "--quiet")
        with serving(self.root / "log", *options) as hub, Client(hub.url, self._secret) as client:
            for repository, commit, number in self.acknowledged:
                try:
                    is_whole = client.pull(repository, FILE, commit) == self.content(number)
                except AssertionError:
                    is_whole = False
                if not is_whole:
                    missing.append((repository, commit, number))
        return missing

    def damage(self) -> list[str]:
        """What a check of the whole registry finds."""
        return [damage for _, damage in verify(Registry(self.store)) if damage]
