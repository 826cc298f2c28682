"""Lookup in all sources: find a delta, read its document, and search."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames
from deltahub.errors import ConfigError
from deltahub.hub.pull import Transfer
from deltahub.hub.resolver import Resolver
from deltahub.link import Link
from deltahub.reference import Reference
from deltahub.registry.amend import Amendment
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import INDEXES, Listed
from deltahub.registry.verify import Supply, from_registry
from deltahub.sources.base import Known, Resolved, Source
from deltahub.sources.catalog import Choice, Rules, Sources, link_at, registry_at
from deltahub.sources.registry import RegistrySource


class Lookup:
    """All sources and their contents.

    Args:
        sources: by name, in the order of lookup for a name without a source; a registry may stand for its source.
        cache: the cache for pulled deltas.
        rules: which sources are used; by default all of them, and the first is the default for push and list.
        local_files_only: use no network, whatever the environment says.
    """

    def __init__(
        self,
        sources: Mapping[str, Source | Registry],
        cache: Cache,
        rules: Rules | None = None,
        *,
        local_files_only: bool = False,
    ) -> None:
        self.cache = cache
        self._names = CachedNames(cache)
        indexes, known = cache.root / INDEXES, self._names.known
        self._choice = Choice(
            Sources({name: partial(_as_source, sources, name, indexes, known) for name in sources}),
            rules or Rules(next(iter(sources))),
            partial(registry_at, indexes=indexes, known=known),
            partial(link_at, cache=cache, names=self._names),
            local_only=local_files_only,
        )
        self._resolver = Resolver(self._choice, self._names)

    def source(self, name: str | None) -> Source:
        """Return a source by its name, or the registry in a folder or at ``s3://bucket/prefix``; the default one for None.

        Raises:
            NotFoundError: no source has this name.
            ConfigError: it is disabled.
        """
        return self._choice.source(name)

    def registry(self, name: str | None) -> Registry:
        """Return a registry by the name or address of its source; the default one for None.

        Raises:
            NotFoundError: no source has this name.
            ConfigError: the source is disabled, or is not a registry.
        """
        return as_registry(self.source(name))

    @property
    def registries(self) -> dict[str, Registry]:
        """The registries among the enabled sources, in their order."""
        return {it.name: it.registry for it in self._choice.on() if isinstance(it, RegistrySource)}

    def document(self, reference: Reference) -> tuple[Source, ReferenceDocument]:
        """Return the first source that has a delta, and its reference document there.

        Raises:
            NotFoundError: no source has it; the message lists the searched places and the nearest names.
            UnreachableError: a source that may have it does not answer.
        """
        return self._resolver.ask(reference, lambda source: (source, source.document(reference.path)))

    def held(self, reference: Reference) -> tuple[Registry, ReferenceDocument]:
        """Locate a delta for modification, which only registries support.

        Raises:
            NotFoundError: no source has it.
            ConfigError: the first source that has it is not a registry.
        """
        source, document = self.document(reference)
        return as_registry(source), document

    def amend(self, reference: Reference, amendment: Amendment) -> tuple[Reference, Version]:
        """Change what is said about a version after its push, in the first source that has it; its content and digest stay.

        Returns:
            The version with its source, and what is said about it now.

        Raises:
            NotFoundError: no source has it.
            ConfigError: the source keeps no such changes.
        """
        source, document = self.document(reference)
        version, entry = source.amend(document.name, reference.version, amendment)
        return reference.exact(source.name, document.name, version), entry

    def resolve(self, wanted: Reference | Link, *, fresh: bool = False, transfer: Transfer | None = None) -> Resolved:
        """Return the version that a reference or a link means.

        Args:
            fresh: do not fall back to the meaning at its last pull.
            transfer: progress callbacks for files that must be fetched to resolve a link.

        Raises:
            NotFoundError: no source has it, or the first that has it lacks the version.
            UnreachableError: a source that may have it does not answer.
            IntegrityError: the manifest is damaged.
        """
        return self._resolver.resolve(wanted, fresh=fresh, progress=transfer.progress if transfer else None)

    def supplies(self, registry: Registry) -> dict[str, Supply]:
        """Return other places for the objects of a registry: the other registries, and the cache."""
        others = {other.name: from_registry(other) for other in self.registries.values() if other is not registry}
        return {**others, "the cache": self.cache.supply}

    def search(self, search: Search, source: str | None = None) -> tuple[list[Listed], int]:
        """Return the deltas of a source that match a query, in its order, and their number without limit and offset.

        Raises:
            ConfigError: the source is disabled, or does not support the search.
        """
        return self._choice.reachable(source).search(search)


def _as_source(sources: Mapping[str, Source | Registry], name: str, indexes: Path, known: Known) -> Source:
    found = sources[name]
    return RegistrySource(found, indexes, known) if isinstance(found, Registry) else found


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
