"""Looking things up in all sources: who has a delta, what is said about it, and which there are."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from deltahub.cache.cache import Cache
from deltahub.cache.names import CachedNames
from deltahub.errors import ConfigError
from deltahub.hub.pulling import Transfer
from deltahub.hub.resolution import Resolver
from deltahub.link import Link
from deltahub.reference import Reference
from deltahub.registry.amending import Amendment
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.index import INDEXES, Listed
from deltahub.registry.query import Query
from deltahub.registry.refreshing import Told
from deltahub.registry.registry import Registry
from deltahub.registry.repair import Supply, from_registry
from deltahub.sources.base import Known, Resolved, Source
from deltahub.sources.choosing import Choice, Rules
from deltahub.sources.opening import Sources, registry_at
from deltahub.sources.registry import RegistrySource


class Lookup:
    """All sources, and what is in them.

    Args:
        sources: by name, in the order in which a name without a source is looked up; a registry stands for itself.
        cache: where pulled deltas are kept.
        rules: which sources are asked; by default all of them, and the first is pushed to and listed.
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
            local_only=local_files_only,
        )
        self._resolver = Resolver(self._choice, self._names)

    def source(self, name: str | None) -> Source:
        """A source by its name, or the registry in a folder or at ``s3://bucket/prefix``; the default one for None.

        Raises:
            NotFoundError: no source has this name.
            ConfigError: it is off.
        """
        return self._choice.source(name)

    def registry(self, name: str | None) -> Registry:
        """The same for a registry.

        Raises:
            NotFoundError: no source has this name.
            ConfigError: the source is off, or no registry.
        """
        return as_registry(self.source(name))

    @property
    def registries(self) -> dict[str, Registry]:
        """The sources that are registries and on, in their order."""
        return {it.name: it.registry for it in self._choice.on() if isinstance(it, RegistrySource)}

    def document(self, reference: Reference) -> tuple[Source, ReferenceDocument]:
        """The first source that has a delta, and all that is said about it there.

        Raises:
            NotFoundError: none has it; the message lists where it was looked for and the nearest names.
            UnreachableError: one that may have it gives no answer.
        """
        return self._resolver.ask(reference, lambda source: (source, source.document(reference.path)))

    def held(self, reference: Reference) -> tuple[Registry, ReferenceDocument]:
        """The same for a delta that is to be changed, which only a registry can.

        Raises:
            NotFoundError: no source has it.
            ConfigError: the first that has it is no registry.
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
        """The version that a reference or a link means.

        Args:
            fresh: what it meant when it was last pulled will not do.
            transfer: told of what has to be fetched to find out.

        Raises:
            NotFoundError: no source has it, or the first that has it lacks the version.
            UnreachableError: one that may have it gives no answer.
            IntegrityError: the manifest is damaged.
        """
        if isinstance(wanted, Reference):
            return self._resolver.resolve(wanted, fresh=fresh)
        from deltahub.sources.web.source import WebSource  # late: it needs requests

        source = WebSource(self.cache, self._names, self._choice.forbidden_network())
        return source.resolve(wanted, fresh=fresh, progress=transfer.progress if transfer else None)

    def supplies(self, registry: Registry) -> dict[str, Supply]:
        """Where else the objects of a registry may be: the other registries, and the cache."""
        others = {other.name: from_registry(other) for other in self.registries.values() if other is not registry}
        return {**others, "the cache": self.cache.supply}

    def search(
        self,
        query: Query,
        source: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        backbone: Path | None = None,
        told: Told | None = None,
    ) -> tuple[list[Listed], int]:
        """The deltas of one source that a query means, in its order, and how many there are without limit and offset.

        Args:
            backbone: the folder of a backbone that they must fit.
            told: as `Source.search` takes it.

        Raises:
            CheckpointError: the folder holds no backbone.
            ConfigError: the source is off, or cannot be searched that way.
        """
        return self._choice.reachable(source).search(query, limit, offset, backbone, told)


def _as_source(sources: Mapping[str, Source | Registry], name: str, indexes: Path, known: Known) -> Source:
    found = sources[name]
    return RegistrySource(found, indexes, known) if isinstance(found, Registry) else found


def as_registry(source: Source) -> Registry:
    """The registry that a source is.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(source, RegistrySource):
        msg = (
            f"{source.place} is no registry, and this works on registries only. Name one with its source, or pull "
            "the delta and push it to a registry: deltahub push FOLDER --to local"
        )
        raise ConfigError(msg)
    return source.registry
