"""Selection of sources: the named one, or those searched for a name without a source.

Configured sources are opened lazily; opening one sends no request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames
from deltahub.errors import ConfigError, NotFoundError, UnreachableError
from deltahub.link import Link
from deltahub.plugins.entry_points import SOURCES
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.settings import environment
from deltahub.settings.source_entry import HF, HUB, RESERVED, SourceEntry, is_place, place_of
from deltahub.settings.user import Settings, disabled_source, unknown_source
from deltahub.sources.base import CacheLookup, Source
from deltahub.sources.registry import RegistrySource

Opener = Callable[[], Source]


class Sources(Mapping[str, Source]):
    """Sources by name in lookup order, each opened on first use.

    Args:
        openers: open each source.
    """

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        self._openers: Final = openers
        self._open: dict[str, Source] = {}

    def __getitem__(self, name: str) -> Source:
        if name not in self._open:
            self._open[name] = self._openers[name]()
        return self._open[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._openers)

    def __len__(self) -> int:
        return len(self._openers)


def open_source(entry: SourceEntry, indexes: Path, lookup: CacheLookup, kept: Path | None = None) -> Source:
    """Open a source.

    Args:
        indexes: the folder for search indexes.
        kept: the folder for interrupted downloads; None to discard them.
        lookup: looks up manifests in the cache.

    Raises:
        ConfigError: its address is malformed.
    """
    if entry.kind != HUB:
        return RegistrySource(Registry(entry.store(), entry.name), indexes, lookup)
    from deltahub.sources.huggingface.source import HuggingFace  # imported lazily: only hubs need it

    if entry.name == HF:  # address and token come from the Hugging Face client's settings
        return HuggingFace(entry.name, lookup=lookup, kept=kept)
    return HuggingFace(entry.name, endpoint=entry.url, token_variable=entry.token_variable, lookup=lookup, kept=kept)


def registry_at(address: str, indexes: Path, lookup: CacheLookup) -> RegistrySource:
    """Open a registry that is not a configured source, by folder or ``s3://bucket/prefix``, which is also its name.

    Raises:
        ConfigError: the address is malformed.
    """
    place = place_of(address)
    return RegistrySource(Registry(SourceEntry(place, place).store(), place), indexes, lookup)


def link_at(link: Link, cache: Cache, names: CachedNames) -> Source:
    """Open a link, which is a source of a delta."""
    from deltahub.sources.web.source import WebSource  # late: it needs requests

    return WebSource(link, cache, names)


@dataclass(frozen=True)
class Rules:
    """Rules for the selection of sources.

    Attributes:
        default: the source used where one is needed and none is named.
        disabled: names of disabled sources.
        public: names of sources where anyone can register a free name.
        hubs: names of sources accessed through the Hugging Face client.
        bound: sources that a namespace, in lower case, is limited to; any other namespace is searched in all sources.
        places: names of registries by address.
    """

    default: str
    disabled: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    hubs: tuple[str, ...] = ()
    bound: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """Return the rules configured by a user."""
        entries = settings.sources
        bound: dict[str, tuple[str, ...]] = {}
        for entry in entries:
            for namespace in map(str.lower, entry.namespaces):
                bound[namespace] = (*bound.get(namespace, ()), entry.name)
        return cls(
            settings.default,
            settings.disabled,
            tuple(entry.name for entry in entries if entry.public),
            tuple(entry.name for entry in entries if entry.kind == HUB),
            bound,
            # For a bucket on the custom server of an entry, the address alone is ambiguous.
            {entry.url: entry.name for entry in entries if entry.kind != HUB and entry.endpoint is None},
        )


class Choice:
    """The sources of a hub.

    Args:
        sources: by name, in lookup order, including disabled ones.
        rules: the selection rules.
        open_place: opens the registry at an address that is not a configured source.
        open_link: opens a link.
        local_only: use no network, regardless of the environment.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        rules: Rules,
        open_place: Callable[[str], Source],
        open_link: Callable[[Link], Source],
        *,
        local_only: bool = False,
    ) -> None:
        self.sources = sources
        self.rules = rules
        self._open_place = open_place
        self._open_link = open_link
        self._local_only = local_only
        self._outside_sources: dict[str, Source] = {}

    def source(self, name: str | None) -> Source:
        """Return a source by name, or the registry at an address; the default source for None.

        Raises:
            NotFoundError: no source has this name.
            ConfigError: it is disabled.
        """
        name = name or self.rules.default
        if is_place(name):
            address = place_of(name)
            if address not in self.rules.places:
                return self._open_place(address)
            name = self.rules.places[address]
        if name in self.rules.disabled:
            raise disabled_source(name)
        return self.sources[name] if name in self.sources else self._outside(name)

    def _outside(self, name: str) -> Source:
        """Return a source that an installed package adds; it is used only where it is named.

        Raises:
            NotFoundError: no package adds it.
            ConfigError: several do, or the package does not work.
        """
        if name not in self._outside_sources:
            entry = None if name in RESERVED else SOURCES.find(name)
            if entry is None:
                raise unknown_source(name, tuple(self.sources))
            source: Source = SOURCES.load(entry)(name)
            if source.name != name:
                raise SOURCES.fault(entry, f"gives a source called {source.name!r}")
            self._outside_sources[name] = source
        return self._outside_sources[name]

    def source_of(self, reference: Reference | Link) -> Source:
        """Return the source that a reference names, or that a link is; the default source for a name without one."""
        return self._open_link(reference) if isinstance(reference, Link) else self.source(reference.source)

    def reachable(self, name: str | None) -> Source:
        """Return a source by name for a request that the cache cannot answer; raises like `require_reachable`."""
        return self.require_reachable(self.source(name))

    def require_reachable(self, source: Source) -> Source:
        """Return a source for a request that the cache cannot answer.

        Raises:
            UnreachableError: it needs the network, which may not be used.
        """
        if why := self.forbidden(source):
            msg = f"{source.place} needs the network, and {why}. Unset that, or name a registry in a folder."
            raise UnreachableError(msg)
        return source

    def on(self) -> Iterator[Source]:
        """Return all enabled sources in lookup order."""
        return (source for name, source in self.sources.items() if name not in self.rules.disabled)

    def names(self, namespace: str) -> tuple[str, ...]:
        """Return the enabled sources searched for a name without a source, in lookup order.

        Raises:
            ConfigError: all sources of the namespace are disabled.
        """
        bound = self.rules.bound.get(namespace.lower(), tuple(self.sources))
        on = tuple(name for name in self.sources if name in bound and name not in self.rules.disabled)
        if not on:
            msg = (
                f"Deltas in {namespace} are looked up in {', '.join(bound)} only, which is off. "
                f"Turn it on: deltahub source enable {bound[0]}"
            )
            raise ConfigError(msg)
        return on

    def candidates(self, reference: Reference | Link) -> Iterator[Source]:
        """Yield the sources to try for a delta, in order."""
        if name := reference.unplaced:
            yield from (self.sources[source] for source in self.names(name.path.namespace))
        else:
            yield self.source_of(reference)

    def needs_network(self, reference: Reference | Link) -> bool:
        """Return whether a delta comes over the network; False if its source is not in use any more."""
        try:
            return self.source_of(reference).remote
        except (NotFoundError, ConfigError):
            return False

    def forbidden(self, source: Source) -> str | None:
        """Return why a source may not be used without network access, as a clause; None if it may be used."""
        if not source.remote:
            return None
        return (
            "local_files_only is set" if self._local_only else environment.forbidden(hub=source.name in self.rules.hubs)
        )
