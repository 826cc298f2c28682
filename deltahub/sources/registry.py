"""A registry as a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import ConfigError, DeltaHubError, Outcome
from deltahub.link import Link
from deltahub.reference import DeltaPath, Reference
from deltahub.registry.amend import Amendment, amend
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.editor import RegistryEditor
from deltahub.registry.entries import Version
from deltahub.registry.promotion.policy import Policy, read_tagged, write_policy
from deltahub.registry.publish import Publication, Published, publish, publish_many
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import Index, Listed
from deltahub.sources.base import CacheLookup, Pushed, Resolved, Source
from deltahub.stores.base import Progress


class RegistrySource:
    """Deltas in a registry.

    Args:
        registry: the registry; its name is the source's.
        indexes: the folder for its search index.
        lookup: looks up manifests that need not be read again.
    """

    def __init__(self, registry: Registry, indexes: Path, lookup: CacheLookup | None = None) -> None:
        self.registry = registry
        self._indexes = indexes
        self._lookup = lookup

    @property
    def name(self) -> str:
        """The registry's name."""
        return self.registry.name

    @property
    def place(self) -> str:
        """The registry's name and location, for people."""
        return self.registry.place

    @property
    def remote(self) -> bool:
        """Whether its address is a URL, such as that of a bucket; a folder on a network drive does not count."""
        return "://" in self.registry.store.url

    def resolve(self, reference: Reference | Link, progress: Progress | None = None) -> Resolved:
        """See `Source.resolve`; the document is always read again, so that moved aliases are noticed."""
        document = self.registry.document(reference.path)
        version = document.resolve(reference.version)
        exact = Reference(document.name, source=self.name, version=version)
        digest = document.versions[version].digest
        cached = self._lookup(exact) if self._lookup else None
        manifest = cached[1] if cached and cached[0] == digest else self.registry.manifest(digest)
        return Resolved(exact, digest, manifest, self._fetch)

    def document(self, path: DeltaPath) -> ReferenceDocument:
        """See `Source.document`."""
        return self.registry.document(path)

    def neighbours(self, path: DeltaPath) -> tuple[DeltaPath, ...]:
        """See `Source.neighbours`."""
        return self.registry.neighbours(path)

    def search(self, search: Search) -> tuple[list[Listed], int]:
        """See `Source.search`."""
        return Index.of(self.registry, self._indexes).search(search)

    def publish(self, publication: Publication, progress: Progress | None = None) -> Pushed:
        """See `Source.publish`."""
        if publication.private is not None:
            msg = f"Who may see what is in {self.place} is a matter of its folder or bucket. Leave out that it is private."
            raise ConfigError(msg)
        return self._pushed(publication, publish(self.registry, publication, progress))

    def publish_many(
        self, publications: Sequence[Publication], progress: Progress | None = None
    ) -> list[Outcome[Pushed]]:
        """Publish many checkpoint folders at once; return the result or error of each.

        Raises:
            StorageError: the registry failed as a whole. All can be published again.
        """
        results = publish_many(self.registry, publications, progress)
        return [
            result if isinstance(result, DeltaHubError) else self._pushed(publication, result)
            for publication, result in zip(publications, results, strict=True)
        ]

    def amend(self, path: DeltaPath, version: str | None, amendment: Amendment) -> tuple[str, Version]:
        """See `Source.amend`."""
        document, name = amend(self.registry, path, version, amendment)
        return name, document.versions[name]

    def editor(self, path: DeltaPath) -> RegistryEditor:
        """See `Editable.editor`."""
        return RegistryEditor(self.registry)

    def policy(self) -> tuple[Policy, str]:
        """See `Governed.policy`."""
        return read_tagged(self.registry.store) or (Policy(), "none")

    def set_policy(self, policy: Policy, etag: str, reason: str = "") -> Policy:
        """See `Governed.set_policy`."""
        return write_policy(self.registry.store, policy, self.registry.actor, reason, expect=etag)

    def _pushed(self, publication: Publication, published: Published) -> Pushed:
        entry = published.document.versions[published.version]
        exact = Reference(published.document.name, source=self.name, version=published.version)
        return Pushed(exact, entry.digest, published.new, publication.manifest.size, entry.tags)

    def _fetch(self, entry: FileEntry, into: Path, progress: Progress | None) -> None:
        self.registry.fetch(entry, into, progress)


def as_registry(source: Source) -> Registry:
    """Return the registry of a source.

    Raises:
        ConfigError: the source is not a registry.
    """
    if not isinstance(source, RegistrySource):
        msg = (
            f"{source.place} is not a registry, and only registries support this. Name one with its source, or pull "
            "the delta and push it to a registry: deltahub push FOLDER --to local"
        )
        raise ConfigError(msg)
    return source.registry
