"""The hub: push, pull, list and resolve over all sources, with one cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from deltahub.cache import Cache, copy_delta
from deltahub.errors import CheckpointError, ConfigError, IntegrityError, NotFoundError, NoVersionError, RemovedError
from deltahub.lockfile import Lock, Pin, active
from deltahub.manifest import FileEntry
from deltahub.outcomes import Pulled, Pushed
from deltahub.places import cache_home
from deltahub.pushing import ready
from deltahub.reference import Reference
from deltahub.registries import Registries, unknown_source
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.index import Listed
from deltahub.registry.query import Query
from deltahub.registry.registry import Registry
from deltahub.registry.repair import Supply, from_registry
from deltahub.sources.base import Resolved, Source
from deltahub.sources.opening import open_sources
from deltahub.sources.registry import RegistrySource
from deltahub.stores.base import Progress

T = TypeVar("T")


class Hub:
    """All sources and the cache.

    Args:
        sources: by name, in the order in which a name without a source is looked up; a registry stands for itself.
        cache: where pulled deltas are kept.
        default: the source to push to and list when none is named; by default the first.
    """

    def __init__(self, sources: Mapping[str, Source | Registry], cache: Cache, default: str | None = None) -> None:
        self.sources: dict[str, Source] = {
            name: RegistrySource(it, cache.root / "index") if isinstance(it, Registry) else it
            for name, it in sources.items()
        }
        self.cache = cache
        self.default = default or next(iter(sources))

    @classmethod
    def open(cls, cache_dir: str | os.PathLike[str] | None = None) -> Hub:
        """The hub of this user, by the environment and the settings; no source is asked anything yet.

        Args:
            cache_dir: another place for the cache.

        Raises:
            ConfigError: the settings are damaged.
        """
        settings = Registries.read()
        cache = Cache(Path(cache_dir) if cache_dir else cache_home())
        return cls(open_sources(settings, cache.root / "index"), cache, settings.default)

    # ----- where to look -----

    def source(self, name: str | None) -> Source:
        """A source by its name; the default one for None.

        Raises:
            NotFoundError: no source has this name.
        """
        name = name or self.default
        if name not in self.sources:
            raise unknown_source(name, tuple(self.sources))
        return self.sources[name]

    def registry(self, name: str | None) -> Registry:
        """A registry by its source name; the default one for None.

        Raises:
            NotFoundError: no source has this name.
            ConfigError: the source is no registry.
        """
        return _registry(self.source(name))

    @property
    def registries(self) -> dict[str, Registry]:
        """The sources that are registries, in their order."""
        return {name: it.registry for name, it in self.sources.items() if isinstance(it, RegistrySource)}

    def _first(self, reference: Reference, ask: Callable[[Source], T]) -> T:
        """What the first source that has a delta says of it; no other source may stand in for it.

        Raises:
            NotFoundError: none has it; the message lists where it was looked for and the nearest names.
        """
        sources = [self.source(reference.source)] if reference.source else list(self.sources.values())
        misses: list[NotFoundError] = []
        for source in sources:
            try:
                return ask(source)
            except (NoVersionError, RemovedError):
                raise
            except NotFoundError as error:
                misses.append(error)
        places = tuple(place for miss in misses for place in miss.looked_in)
        raise NotFoundError(
            f"The delta {reference}", places, tuple(dict.fromkeys(name for miss in misses for name in miss.nearest))
        )

    def document(self, reference: Reference) -> tuple[Source, ReferenceDocument]:
        """The first source that has a delta, and all that is said about it there.

        Raises:
            NotFoundError: none has it.
        """
        return self._first(reference, lambda source: (source, source.document(reference.path)))

    def held(self, reference: Reference) -> tuple[Registry, ReferenceDocument]:
        """The same for a delta that is to be changed, which only a registry can.

        Raises:
            NotFoundError: no source has it.
            ConfigError: the first that has it is no registry.
        """
        source, document = self.document(reference)
        return _registry(source), document

    def resolve(self, reference: Reference) -> Resolved:
        """The version that a reference means at the first source that has the delta.

        Raises:
            NotFoundError: none has it, or the first that has it lacks the version.
            IntegrityError: the manifest is damaged.
        """
        return self._first(reference, lambda source: source.resolve(reference))

    # ----- push and pull -----

    def push(
        self,
        folder: Path,
        name: str | None = None,
        *,
        tags: Collection[str] = (),
        aliases: Collection[str] = (),
        message: str = "",
        to: str | None = None,
        expect: Mapping[str, str | None] | None = None,
        progress: Progress | None = None,
    ) -> Pushed:
        """Publish a checkpoint folder; every file is checked first.

        Args:
            name: what to call it, ``"namespace/name"``; by default made from its task and backbone.
            tags: labels and key=value pairs, beside those saved in the checkpoint.
            aliases: movable names to point to it.
            to: the source to publish to; by default the default one.
            expect: what aliases must point to now, None for nothing.

        Raises:
            ConflictError: an alias points elsewhere than expected. No version was added.
            CheckpointError: the folder holds no whole delta.
            IntegrityError: a file is not the one that was saved.
            ReferenceSyntaxError: the name, a tag or an alias is not well formed.
        """
        it = ready(folder, name, tags=tags, aliases=aliases, to=to)
        return self.source(it.reference.source).publish(
            it.folder,
            it.manifest,
            it.reference,
            tags=it.tags,
            aliases=it.aliases,
            message=message,
            expect=expect,
            progress=progress,
        )

    def pull(
        self,
        reference: Reference,
        *,
        to: Path | None = None,
        force: bool = False,
        progress: Progress | None = None,
    ) -> Pulled:
        """Bring a delta into the cache, every byte checked.

        Args:
            to: also copy its files into this folder, which is new or holds a delta.
            force: fetch it even if the cache has it.

        Raises:
            NotFoundError: no source has it, or `DELTAHUB_LOCK` names a lock file and it is not in there.
            IntegrityError: the source is damaged, or has other content under it than was locked.
        """
        lock = active()
        found = self._pinned(lock.find(reference), lock, look=force) if lock else self.resolve(reference)
        pulled = self._cached(found, force=force, progress=progress)
        if to is None:
            return pulled
        copy_delta(found.manifest, pulled.folder, to)
        return replace(pulled, folder=to)

    def pin(self, reference: Reference) -> Pin:
        """What a reference means now, for a lock file.

        Raises:
            NotFoundError: no source has it.
        """
        found = self.resolve(reference)
        exact = found.reference
        assert exact.source is not None
        assert exact.version is not None
        return Pin(exact.path, exact.source, exact.version, found.digest)

    def sync(self, lock: Lock, progress: Progress | None = None) -> list[Pulled]:
        """Bring all that a lock file pins into the cache, every byte checked.

        Raises:
            IntegrityError: a source has other content under what was locked, or is damaged.
        """
        pins = dict.fromkeys(lock.pins.values())
        return [self._cached(self._pinned(pin, lock), force=False, progress=progress) for pin in pins]

    def _cached(self, found: Resolved, *, force: bool, progress: Progress | None) -> Pulled:
        def fetch(entry: FileEntry, into: Path) -> None:
            found.fetch(entry, into, progress)

        folder = self.cache.get(found.digest, found.manifest, fetch, str(found.reference), fresh=force)
        return Pulled(found.reference, found.digest, folder, found.manifest)

    def _pinned(self, pin: Pin, lock: Lock, *, look: bool = False) -> Resolved:
        """The version that a lock file pins; if the cache has it, no source is asked."""
        exact = Reference.parse(str(pin))

        def fetch(entry: FileEntry, into: Path, progress: Progress | None) -> None:
            self.source(pin.source).resolve(exact).fetch(entry, into, progress)

        if not look and (manifest := self.cache.manifest(pin.digest)):
            return Resolved(exact, pin.digest, manifest, fetch)
        found = self.source(pin.source).resolve(exact)
        if found.digest != pin.digest:
            remedy = (
                f"Ask who changed it; if the new content is right, lock it: deltahub lock --add {exact} -o {lock.path}"
            )
            raise IntegrityError(f"{exact}, locked in {lock.path},", pin.digest, found.digest, remedy)
        return found

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
    ) -> tuple[list[Listed], int]:
        """The deltas of one source that a query means, in its order, and how many there are without limit and offset.

        Args:
            backbone: the folder of a backbone that they must fit.

        Raises:
            CheckpointError: the folder holds no backbone.
            ConfigError: the source cannot be searched that way.
        """
        return self.source(source).search(query, limit, offset, backbone)


def _registry(source: Source) -> Registry:
    if not isinstance(source, RegistrySource):
        msg = (
            f"{source.place} is no registry, and this works on registries only. Name one with its source, or pull "
            "the delta and push it to a registry: deltahub push FOLDER --to local"
        )
        raise ConfigError(msg)
    return source.registry


def locate(path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None, **options: Any) -> Path:
    """The folder of a delta, given a folder or a reference.

    Args:
        path: an existing folder, or a reference to pull.
        cache_dir: another place for the cache.
        options: as `Hub.pull` takes them.

    Raises:
        CheckpointError: it looks like a folder and there is none.
        NotFoundError: no source has it.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    text = os.fspath(path)
    if folder.exists():
        msg = f"{text} is a file; expected the folder that save_finetuned wrote. Pass its parent folder."
        raise CheckpointError(msg)
    if folder.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        msg = f"There is no folder {text}. Check the path, or pass a reference such as DeltaHub/sst2-t5-base."
        raise CheckpointError(msg)
    return Hub.open(cache_dir).pull(Reference.parse(text), **options).folder
