"""The hub: push, pull, list and resolve over all sources, with one cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deltahub.cache import Cache, copy_delta
from deltahub.errors import CheckpointError, IntegrityError, NotFoundError, ReferenceSyntaxError
from deltahub.lockfile import Lock, Pin, active
from deltahub.manifest import FileEntry, Manifest
from deltahub.naming import default_name
from deltahub.outcomes import Pulled, Pushed
from deltahub.places import cache_home, home
from deltahub.reference import Reference, check_alias, check_tag
from deltahub.registries import LOCAL, Registries, unknown_source
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.index import Index, Listed
from deltahub.registry.query import Query
from deltahub.registry.registry import Found, Registry
from deltahub.registry.repair import Supply, from_registry
from deltahub.stores.base import Progress
from deltahub.stores.local import LocalStore


class Hub:
    """All sources and the cache.

    Args:
        registries: by source name, in the order in which a name without a source is looked up.
        cache: where pulled deltas are kept.
        default: the source to push to and list when none is named; by default the first.
    """

    def __init__(self, registries: Mapping[str, Registry], cache: Cache, default: str | None = None) -> None:
        self.registries = registries
        self.cache = cache
        self.default = default or next(iter(registries))

    @classmethod
    def open(cls, cache_dir: str | os.PathLike[str] | None = None) -> Hub:
        """The hub of this user, by the environment and the settings; no registry is asked anything yet.

        Args:
            cache_dir: another place for the cache.

        Raises:
            ConfigError: the settings are damaged.
        """
        settings = Registries.read()
        stores = {LOCAL: LocalStore(home() / "registry")} | {name: it.store() for name, it in settings.known.items()}
        registries = {name: Registry(store, name) for name, store in stores.items()}
        return cls(registries, Cache(Path(cache_dir) if cache_dir else cache_home()), settings.default)

    def registry(self, source: str | None) -> Registry:
        """A registry by its source name; the default one for None.

        Raises:
            NotFoundError: no source has this name.
        """
        source = source or self.default
        if source not in self.registries:
            raise unknown_source(source, tuple(self.registries))
        return self.registries[source]

    def document(self, reference: Reference) -> tuple[Registry, ReferenceDocument]:
        """The first source that has a delta, and all that is said about it there; no other source may stand in for it.

        Raises:
            NotFoundError: none has it; the message lists where it was looked for and the nearest names.
        """
        sources = [self.registry(reference.source)] if reference.source else list(self.registries.values())
        misses: list[NotFoundError] = []
        for registry in sources:
            try:
                return registry, registry.document(reference.path)
            except NotFoundError as error:
                misses.append(error)
        places = tuple(place for miss in misses for place in miss.looked_in)
        raise NotFoundError(
            f"The delta {reference}", places, tuple(dict.fromkeys(name for miss in misses for name in miss.nearest))
        )

    def resolve(self, reference: Reference) -> tuple[Registry, Found]:
        """The first source that has a delta, and the version meant with its manifest.

        Raises:
            NotFoundError: none has it, or the first that has it lacks the version.
            IntegrityError: the manifest is damaged.
        """
        registry, document = self.document(reference)
        return registry, registry.found(document, reference.version)

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
        checked = [check_tag(tag) for tag in tags]
        for alias in aliases:
            check_alias(alias)
        from deltahub.checkpoint import describe  # late: a list or a pull reads no checkpoint

        manifest = describe(folder)
        saved = manifest.config.get("metadata", {}).get("tags", [])
        reference = Reference.parse(name or default_name(manifest.config, checked))
        if reference.version:
            msg = f"A push numbers its version itself. Leave out '@{reference.version}', or give it as an alias."
            raise ReferenceSyntaxError(msg)
        if to and reference.source and to != reference.source:
            msg = f"{str(reference)!r} names another source than {to!r}. Name one of them."
            raise ReferenceSyntaxError(msg)
        registry = self.registry(to or reference.source)
        version, new = registry.publish(
            reference,
            manifest,
            folder,
            tags=[*saved, *checked],
            aliases=aliases,
            message=message,
            expect=expect,
            progress=progress,
        )
        document = registry.document(reference.path)
        published, entry = reference.exact(registry.name, document.name, version), document.versions[version]
        return Pushed(published, entry.digest, new, manifest.size, entry.tags)

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
        if lock := active():
            exact, digest, manifest = self._pinned(lock.find(reference), lock, look=force)
        else:
            registry, found = self.resolve(reference)
            exact = reference.exact(registry.name, found.document.name, found.version)
            digest, manifest = found.entry.digest, found.manifest
        pulled = self._cached(exact, digest, manifest, force=force, progress=progress)
        if to is None:
            return pulled
        copy_delta(manifest, pulled.folder, to)
        return replace(pulled, folder=to)

    def pin(self, reference: Reference) -> Pin:
        """What a reference means now, for a lock file.

        Raises:
            NotFoundError: no source has it.
        """
        registry, document = self.document(reference)
        version = document.resolve(reference.version)
        return Pin(document.name, registry.name, version, document.versions[version].digest)

    def sync(self, lock: Lock, progress: Progress | None = None) -> list[Pulled]:
        """Bring all that a lock file pins into the cache, every byte checked.

        Raises:
            IntegrityError: a source has other content under what was locked, or is damaged.
        """
        pins = dict.fromkeys(lock.pins.values())
        return [self._cached(*self._pinned(pin, lock), force=False, progress=progress) for pin in pins]

    def _cached(
        self, exact: Reference, digest: str, manifest: Manifest, *, force: bool, progress: Progress | None
    ) -> Pulled:
        def fetch(entry: FileEntry, into: Path) -> None:
            self.registry(exact.source).fetch(entry, into, progress)

        folder = self.cache.get(digest, manifest, fetch, str(exact), fresh=force)
        return Pulled(exact, digest, folder, manifest)

    def _pinned(self, pin: Pin, lock: Lock, *, look: bool = False) -> tuple[Reference, str, Manifest]:
        """The version that a lock file pins; if the cache has it, no source is asked."""
        exact = Reference.parse(str(pin))
        if not look and (manifest := self.cache.manifest(pin.digest)):
            return exact, pin.digest, manifest
        registry = self.registry(pin.source)
        document = registry.document(pin.name)
        found = document.versions[document.resolve(pin.version)].digest
        if found != pin.digest:
            remedy = (
                f"Ask who changed it; if the new content is right, lock it: deltahub lock --add {exact} -o {lock.path}"
            )
            raise IntegrityError(f"{exact}, locked in {lock.path},", pin.digest, found, remedy)
        return exact, found, registry.manifest(found)

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
        """The deltas of one registry that a query means, in its order, and how many there are without limit and offset.

        Args:
            backbone: the folder of a backbone that they must fit.

        Raises:
            CheckpointError: the folder holds no backbone.
        """
        registry = self.registry(source)
        place = hashlib.sha256(registry.store.url.encode()).hexdigest()[:16]
        index = Index(self.cache.root / "index" / f"{registry.name}-{place}.sqlite3", registry)
        if backbone is None:
            return index.search(query, limit, offset)
        from deltahub.fitting import backbone_shapes, fitting  # late: hardly ever needed

        found = fitting(registry, index.search(query)[0], backbone_shapes(backbone))
        return found[offset : None if limit is None else offset + limit], len(found)


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
