"""Which source is asked: the one that is named, or those in which a name without a source is looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from deltahub import offline
from deltahub.configured import HUB, is_place, place_of
from deltahub.errors import ConfigError, UnreachableError
from deltahub.link import SOURCE as LINKS
from deltahub.reference import Reference
from deltahub.settings import Settings, disabled_source, unknown_source
from deltahub.sources.base import Source


@dataclass(frozen=True)
class Rules:
    """Which sources are asked.

    Attributes:
        default: the source that is meant where one must be and none is named.
        disabled: names of sources that are off.
        public: names of sources in which anybody can take a free name.
        hubs: names of sources that are asked through the client of Hugging Face.
        bound: the sources that a namespace is looked for in, by the namespace in lower case; all others are looked for in all.
        places: the names of registries by their address.
    """

    default: str
    disabled: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    hubs: tuple[str, ...] = ()
    bound: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules that a user has set up."""
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
            # Of a bucket on a server that only its entry names, the address alone says too little.
            {entry.url: entry.name for entry in entries if entry.kind != HUB and entry.endpoint is None},
        )


class Choice:
    """The sources of a hub.

    Args:
        sources: by name, in the order in which a name without a source is looked up; those that are off too.
        rules: which of them are asked.
        open_place: opens the registry at an address that is no source of the user's.
        local_only: use no network, whatever the environment says.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        rules: Rules,
        open_place: Callable[[str], Source],
        *,
        local_only: bool = False,
    ) -> None:
        self.sources = sources
        self.rules = rules
        self._open_place = open_place
        self._local_only = local_only

    def source(self, name: str | None) -> Source:
        """A source by its name, or the registry at an address; the default one for None.

        Raises:
            NotFoundError: no source has this name.
            ConfigError: it is off.
        """
        name = name or self.rules.default
        if is_place(name):
            address = place_of(name)
            if address not in self.rules.places:
                return self._open_place(address)
            name = self.rules.places[address]
        if name not in self.sources:
            raise unknown_source(name, tuple(self.sources))
        if name in self.rules.disabled:
            raise disabled_source(name)
        return self.sources[name]

    def reachable(self, name: str | None) -> Source:
        """The same, for what cannot be answered from the cache.

        Raises:
            UnreachableError: it needs the network, and that may not be used.
        """
        source = self.source(name)
        if why := self.forbidden(source):
            msg = f"{source.place} needs the network, and {why}. Unset that, or name a registry in a folder."
            raise UnreachableError(msg)
        return source

    def on(self) -> Iterator[Source]:
        """All sources that are on, in their order."""
        return (source for name, source in self.sources.items() if name not in self.rules.disabled)

    def names(self, namespace: str) -> tuple[str, ...]:
        """The sources in which a name without a source is looked for, in their order.

        Raises:
            ConfigError: all that could have it are off.
        """
        bound = self.rules.bound.get(namespace.lower(), tuple(self.sources))
        on = tuple(name for name in self.sources if name in bound and name not in self.rules.disabled)
        if not on:
            msg = (
                f"What is in {namespace} is looked for in {', '.join(bound)} only, which is off. "
                f"Turn it on: deltahub source enable {bound[0]}"
            )
            raise ConfigError(msg)
        return on

    def candidates(self, reference: Reference) -> Iterator[Source]:
        """The sources to ask for a delta, in this order."""
        if reference.source:
            yield self.source(reference.source)
            return
        for name in self.names(reference.namespace):
            yield self.sources[name]

    def needs_network(self, name: str | None) -> bool:
        """Whether what comes from a source comes over the network."""
        return name == LINKS or (name is not None and name in self.sources and self.sources[name].remote)

    def forbidden(self, source: Source) -> str | None:
        """What keeps the network that a source needs from being used, as a clause; None if it may be asked."""
        return self.forbidden_network(hub=source.name in self.rules.hubs) if source.remote else None

    def forbidden_network(self, *, hub: bool = False) -> str | None:
        """The same for the network itself.

        Args:
            hub: whether it is used through the client of Hugging Face.
        """
        return "local_files_only is set" if self._local_only else offline.forbidden(hub=hub)
