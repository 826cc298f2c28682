"""The Source protocol: what the hub asks of every place that deltas come from and go to.

A source names itself in all that it answers. What it does not have is NotFoundError; what keeps it from answering is
UnreachableError, so that no other source stands in for one that is silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deltahub.link import Link
from deltahub.manifest import FileEntry, Manifest
from deltahub.outcomes import Pushed
from deltahub.reference import Reference
from deltahub.registry.amending import Amendment
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.index import Listed
from deltahub.registry.publishing import Publication
from deltahub.registry.query import Query
from deltahub.registry.refreshing import Told
from deltahub.stores.base import Progress

Fetch = Callable[[FileEntry, Path, Progress | None], None]
# The digest and manifest of an exact reference that was pulled before and is in the cache; None if it is not.
Known = Callable[[Reference], tuple[str, Manifest] | None]


@dataclass(frozen=True)
class Resolved:
    """The one version that a reference means at a source.

    Attributes:
        reference: source, name and version, or a link; exact: it means the same for ever.
        digest: of its manifest.
        manifest: its manifest.
        fetch: copies one file of the manifest to a new place, checked against its sha256 and size; a file that fails leaves
            nothing there. Safe to call from several threads at once.
    """

    reference: Reference | Link
    digest: str
    manifest: Manifest
    fetch: Fetch


class Source(Protocol):
    """A place that deltas come from and, where it can be written, go to."""

    @property
    def name(self) -> str:
        """What it is called in references, e.g. ``"hf"``."""
        ...

    @property
    def place(self) -> str:
        """Its name and where it is, for people: ``"team (s3://acme/deltas)"``. It holds no secret."""
        ...

    @property
    def remote(self) -> bool:
        """Whether asking it needs the network."""
        ...

    def resolve(self, reference: Reference) -> Resolved:
        """The version that a reference means, with its manifest.

        Raises:
            NotFoundError: no such delta here, or none that these credentials may see.
            NoVersionError: the delta is here, but not that version.
            RemovedError: that version was removed.
            IntegrityError: it is damaged here.
            UnreachableError: there was no answer.
            StorageError: it refused to answer.
        """
        ...

    def document(self, path: str) -> ReferenceDocument:
        """All that is said about one delta: versions oldest first, aliases, tags, and the log of moves.

        Args:
            path: ``"namespace/name"``.

        Raises:
            NotFoundError: no such delta here.
            UnreachableError: there was no answer.
        """
        ...

    def neighbours(self, path: str) -> tuple[str, ...]:
        """Return the names of deltas in a namespace, or in one of nearly its name, those most like a name first.

        Args:
            path: ``"namespace/name"``.

        Raises:
            UnreachableError: there was no answer.
        """
        ...

    def search(
        self,
        query: Query,
        limit: int | None = None,
        offset: int = 0,
        backbone: Path | None = None,
        told: Told | None = None,
    ) -> tuple[list[Listed], int]:
        """The deltas that a query means, in its order, and how many there are without limit and offset.

        Args:
            backbone: the folder of a backbone that they must fit.
            told: called with how many deltas were read, and of how many, where a list of them has to be made first.

        Raises:
            ConfigError: this source cannot be searched that way; the message says what it can do.
            UnreachableError: there was no answer.
        """
        ...

    def publish(
        self, publication: Publication, *, private: bool | None = None, progress: Progress | None = None
    ) -> Pushed:
        """Publish a checkpoint folder as a new version; the same content again is no new version.

        Args:
            publication: the folder, its files checked, and what it is called, all of it well formed.
            private: whether a delta that is new here is seen by its owners only; None for what is usual here.

        Raises:
            ConfigError: this source cannot be written, or cannot do what is asked.
            ConflictError: an alias points elsewhere than expected, or somebody else pushed first. Nothing was published.
            IntegrityError: a file changed since the manifest was made.
            StorageError: it is full, not writable or out of reach.
        """
        ...

    def amend(self, path: str, version: str | None, amendment: Amendment) -> tuple[str, Version]:
        """Change what is said about a version after its push; its content and digest stay.

        Args:
            path: ``"namespace/name"``.
            version: a version, alias or digest; None for the newest.

        Returns:
            The version, and what is said about it now.

        Raises:
            NotFoundError: no such delta or version here.
            ConfigError: this source keeps no such changes.
            StorageError: it cannot be written.
        """
        ...


def pause(seconds: float) -> None:
    """Wait, before a server is asked again."""
    time.sleep(seconds)
