"""Migration of deltas into a registry: each is fetched, checked and published; an error of one stops none of the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

from deltahub.checkpoint.default_name import plain_name
from deltahub.errors import DeltaHubError, Outcome, ReferenceSyntaxError, outcome
from deltahub.files.atomic import scratch
from deltahub.hub.hub import Hub
from deltahub.migrate.candidate import Candidate, usable_tags
from deltahub.reference import Reference
from deltahub.registry.publish import Publication
from deltahub.sources.base import Pushed, Source
from deltahub.sources.registry import as_registry

_AT_ONCE: Final = 50  # deltas that are fetched, and then published in one batch


@dataclass(frozen=True)
class Migration:
    """A migration into one namespace of a registry.

    Attributes:
        hub: the sources and the cache.
        namespace: the namespace of the new deltas.
        to: the registry; None for the default source.
        tags: tags for all, beside those of each.
        message: why they are pushed; by default where each came from.
        allow_pickle: whether weights that are a Python pickle are published; they are not opened.
        allow_untrained: whether deltas are published that provably change nothing.

    Raises:
        ConfigError: the destination is not a registry.
        ReferenceSyntaxError: the namespace is not well formed.
    """

    hub: Hub
    namespace: str
    to: str | None = None
    tags: Collection[str] = ()
    message: str = ""
    allow_pickle: bool = False
    allow_untrained: bool = False

    def __post_init__(self) -> None:
        """Check the destination."""
        Reference.parse(f"{self.namespace}/delta")
        as_registry(self._destination)

    @cached_property
    def _destination(self) -> Source:
        return self.hub.source(self.to)

    def plan(self, candidates: Sequence[Candidate]) -> list[Outcome[str]]:
        """Return the name that each candidate will have, or the error that keeps it from being published.

        Folders are checked as when they are published; what would have to be downloaded is not checked.
        """
        return [
            outcome(partial(self._checked, candidate, name))
            for candidate, name in zip(candidates, self._names(candidates), strict=True)
        ]

    def _checked(self, candidate: Candidate, name: Outcome[str]) -> str:
        """Return the name of a candidate that can be published."""
        if isinstance(name, DeltaHubError):
            raise name
        if isinstance(candidate.folder, Path):
            self._publication(candidate, name, candidate.folder)
        return name

    def _names(self, candidates: Sequence[Candidate]) -> list[Outcome[str]]:
        """Return the name that each candidate will have, or an error if another one would have the same."""
        names = [f"{self.namespace}/{plain_name(candidate.name)}" for candidate in candidates]
        owners: dict[str, set[str | int]] = defaultdict(set)
        for number, (name, it) in enumerate(zip(names, candidates, strict=True)):
            owners[name.lower()].add(it.name if it.is_version else number)
        return [
            _shared(name, candidate) if len(owners[name.lower()]) > 1 else name
            for name, candidate in zip(names, candidates, strict=True)
        ]

    def run(self, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, Outcome[Pushed]]]:
        """Publish candidates; one that the registry has already under its name, with the same digest, makes no new version.

        Raises:
            StorageError: the registry failed as a whole. The migration can be repeated.
        """
        names = self._names(candidates)
        for start in range(0, len(candidates), _AT_ONCE):
            batch = candidates[start : start + _AT_ONCE]
            with scratch() as place:
                requests = [
                    outcome(partial(self._publication, candidate, name, place / f"{number}"))
                    for number, (candidate, name) in enumerate(zip(batch, names[start:], strict=False))
                ]
                results = self.hub.publish_many(requests, self.to)
            yield from zip(batch, results, strict=True)

    def _publication(self, candidate: Candidate, name: Outcome[str], place: Path) -> Publication:
        """Fetch and check a candidate."""
        if isinstance(name, DeltaHubError):
            raise name
        folder = candidate.folder
        if not isinstance(folder, Path):
            place.mkdir()
            folder = folder(place)
        tags = (*candidate.tags, *usable_tags([f"origin={candidate.address}"]), *self.tags)
        message = self.message or f"Migrated from {candidate.address}"
        publication = Publication.of(
            folder,
            name,
            to=self._destination.name,
            tags=tags,
            aliases=candidate.aliases,
            message=message,
            allow_pickle=self.allow_pickle,
            allow_untrained=self.allow_untrained,
        )
        return replace(publication, metrics=candidate.metrics)


def _shared(name: str, candidate: Candidate) -> ReferenceSyntaxError:
    msg = f"{candidate.address} and another one would both be named {name}. Migrate them one by one, into other namespaces."
    return ReferenceSyntaxError(msg)
