"""The Source protocol: the interface of every place that deltas are pulled from and pushed to.

A source gives its name in all results. A missing delta raises NotFoundError. A source that cannot answer raises UnreachableError,
so that no other source is used in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import ConfigError
from deltahub.link import Link
from deltahub.reference import DeltaPath, Digest, Reference
from deltahub.registry.amend import Amendment
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.editor import Editor
from deltahub.registry.entries import Version
from deltahub.registry.promotion.policy import Policy
from deltahub.registry.publish import Publication
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Listed
from deltahub.stores.base import Progress


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        reference: the delta, with its source and version.
        digest: the digest of its manifest.
        new: whether the content is a new version.
        size: the size of its files in bytes.
        tags: all tags of the version.
    """

    reference: Reference
    digest: Digest
    new: bool
    size: int
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Pulled:
    """The result of a pull.

    Attributes:
        reference: the delta, with its source and version, or the link with its digest.
        digest: the digest of its manifest.
        folder: the folder with its verified files.
        manifest: its manifest.
    """

    reference: Reference | Link
    digest: Digest
    folder: Path
    manifest: Manifest


Fetch = Callable[[FileEntry, Path, Progress | None], None]
# Returns digest and manifest of an exact reference that is cached; None if it is not.
CacheLookup = Callable[[Reference], tuple[Digest, Manifest] | None]


@dataclass(frozen=True)
class Resolved:
    """The version that a reference resolves to at a source.

    Attributes:
        reference: source, name and version, or a link; exact: its meaning never changes.
        digest: of its manifest.
        manifest: its manifest.
        fetch: copies one file of the manifest to a new path and verifies its sha256 and size; on failure no file is left there.
            Thread-safe.
    """

    reference: Reference | Link
    digest: Digest
    manifest: Manifest
    fetch: Fetch


class Source(Protocol):
    """A place to pull deltas from and, if it is writable, to push them to."""

    @property
    def name(self) -> str:
        """Its name in references, e.g. ``"hf"``."""
        ...

    @property
    def place(self) -> str:
        """Its name and location for people: ``"team (s3://acme/deltas)"``, without secrets."""
        ...

    @property
    def remote(self) -> bool:
        """Whether it needs the network."""
        ...

    def resolve(self, reference: Reference | Link, progress: Progress | None = None) -> Resolved:
        """Return the version that a reference means, with its manifest.

        Args:
            progress: receives the bytes of files that must be downloaded for this.

        Raises:
            NotFoundError: the delta does not exist here, or these credentials may not see it.
            NoVersionError: the delta exists here, but not that version.
            RemovedError: that version was removed.
            IntegrityError: it is damaged here.
            UnreachableError: the source did not answer.
            StorageError: access was refused.
        """
        ...

    def document(self, path: DeltaPath) -> ReferenceDocument:
        """Return the document of a delta: versions oldest first, aliases, tags, and the log of changes.

        Args:
            path: ``"namespace/name"``.

        Raises:
            NotFoundError: the delta does not exist here.
            UnreachableError: the source did not answer.
        """
        ...

    def neighbours(self, path: DeltaPath) -> tuple[DeltaPath, ...]:
        """Return the names of deltas in a namespace, or in one with a similar name, the most similar names first.

        Args:
            path: ``"namespace/name"``.

        Raises:
            UnreachableError: the source did not answer.
        """
        ...

    def search(self, search: Search) -> tuple[list[Listed], int]:
        """Return the deltas that match a query in its order, and their number without limit and offset.

        Raises:
            ConfigError: this source does not support such a search; the message says what it supports.
            UnreachableError: the source did not answer.
        """
        ...

    def publish(self, publication: Publication, progress: Progress | None = None) -> Pushed:
        """Publish a checkpoint folder as a new version; unchanged content creates none.

        Args:
            publication: the folder with verified files, and its valid name, aliases and tags.

        Raises:
            ConfigError: this source is not writable, or does not support the request.
            ConflictError: an alias does not point where expected, or there was a concurrent push. Nothing was published.
            IntegrityError: a file changed since the manifest was made.
            StorageError: it is full, not writable or unreachable.
        """
        ...

    def amend(self, path: DeltaPath, version: str | None, amendment: Amendment) -> tuple[str, Version]:
        """Amend the metadata of a version after its push; its content and digest stay.

        Args:
            path: ``"namespace/name"``.
            version: a version, alias or digest; None for the newest.

        Returns:
            The version, and its new metadata.

        Raises:
            NotFoundError: no such delta or version here.
            ConfigError: this source keeps no such changes.
            StorageError: it cannot be written.
        """
        ...


class Editable(Protocol):
    """A source whose deltas can be changed: most are, and `editor_of` refuses for the others."""

    def editor(self, path: DeltaPath) -> Editor:
        """Return what changes a delta.

        Args:
            path: ``"namespace/name"``.
        """
        ...


def editor_of(source: Source, path: DeltaPath) -> Editor:
    """Return what changes a delta of a source.

    Raises:
        ConfigError: the source keeps no changes.
    """
    if not hasattr(source, "editor"):
        msg = (
            f"{source.place} does not keep aliases, tags and the like, so nothing can be changed there. Pull the delta and push "
            "it to a registry: deltahub push FOLDER --to local"
        )
        raise ConfigError(msg)
    return cast("Editable", source).editor(path)


class Governed(Protocol):
    """A source with rules of promotion: a registry, or a hub that serves one."""

    def policy(self) -> tuple[Policy, str]:
        """Return the rules of promotion and their etag; empty ones with the etag ``"none"`` if there are none."""
        ...

    def set_policy(self, policy: Policy, etag: str, reason: str = "") -> Policy:
        """Replace the rules of promotion that have an etag.

        Raises:
            RefusedMoveError: this user may not change them.
            ConflictError: they changed meanwhile.
        """
        ...


def governed(source: Source) -> Governed:
    """Return a source that has rules of promotion.

    Raises:
        ConfigError: it has none.
    """
    if not hasattr(source, "policy"):
        msg = f"{source.place} has no rules of promotion: it is neither a registry nor a hub of DeltaHub."
        raise ConfigError(msg)
    return cast("Governed", source)


def pause(seconds: float) -> None:
    """Wait before a server is contacted again."""
    time.sleep(seconds)
