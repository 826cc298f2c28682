"""A registry that needs the network, which the test can cut."""

from __future__ import annotations

from pathlib import Path

from deltahub.errors import UnreachableError
from deltahub.link import Link
from deltahub.reference import Reference
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.registry import Registry
from deltahub.sources.base import Resolved
from deltahub.sources.registry import RegistrySource
from deltahub.stores.base import Progress
from deltahub.stores.memory import MemoryStore


class Remote(RegistrySource):
    """A source that is asked over the network.

    Attributes:
        down: whether it gives no answer.
        asked: how often it was asked.
    """

    remote = True

    def __init__(self, name: str, tmp_path: Path) -> None:
        super().__init__(Registry(MemoryStore(), name), tmp_path / "indexes")
        self.down, self.request_count = False, 0

    def _answer(self) -> None:
        self.request_count += 1
        if self.down:
            msg = f"Reading {self.place} failed. The server cannot be reached."
            raise UnreachableError(msg)

    def resolve(self, reference: Reference | Link, progress: Progress | None = None) -> Resolved:
        self._answer()
        return super().resolve(reference)

    def document(self, path: str) -> ReferenceDocument:
        self._answer()
        return super().document(path)
