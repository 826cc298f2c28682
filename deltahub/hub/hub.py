"""The hub: push, pull, list and resolve over all sources, with one cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames
from deltahub.errors import Outcome
from deltahub.hub.lockfile import Lock, Pin
from deltahub.hub.pull import FILES_AT_ONCE, Puller, Transfer, several
from deltahub.hub.push import publications, push, push_many
from deltahub.hub.resolver import Resolver
from deltahub.hub.trust import Policies
from deltahub.link import Link
from deltahub.reference import Reference
from deltahub.registry.amend import Amendment
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.publish import Publication
from deltahub.registry.reconcile import Vouched
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.registry.search.index import INDEXES, Listed
from deltahub.registry.verify import Supply, from_registry
from deltahub.settings.environment import cache_home
from deltahub.settings.user import Settings
from deltahub.sources.base import CacheLookup, Pulled, Pushed, Resolved, Source
from deltahub.sources.catalog import Choice, Rules, Sources, link_at, open_source, registry_at
from deltahub.sources.partial import PARTIAL
from deltahub.sources.registry import RegistrySource, as_registry
from deltahub.stores.base import Progress

if TYPE_CHECKING:
    from deltahub.signing import PrivateKey


class Hub:
    """All sources and the cache.

    Args:
        sources: by name, in the order of lookup for a name without a source; a registry can be given instead of its source.
        cache: the cache for pulled deltas.
        rules: which sources are used; by default all, and the first is the default for push and list.
        local_files_only: use no network, whatever the environment says.
        trust: keys in PEM, by the name or the address of a registry: deltas from there need a signature by any of the keys.
    """

    def __init__(
        self,
        sources: Mapping[str, Source | Registry],
        cache: Cache,
        rules: Rules | None = None,
        *,
        local_files_only: bool = False,
        trust: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.cache = cache
        self._names = CachedNames(cache)
        indexes, lookup = cache.root / INDEXES, self._names.lookup
        self._choice = Choice(
            Sources({name: partial(_as_source, sources, name, indexes, lookup) for name in sources}),
            rules or Rules(next(iter(sources))),
            partial(registry_at, indexes=indexes, lookup=lookup),
            partial(link_at, cache=cache, names=self._names),
            local_only=local_files_only,
        )
        self._policies = Policies(trust or {}, self._choice, self._names, cache.root)
        self._resolver = Resolver(self._choice, self._names, self._policies.of_place)
        self._puller = Puller(cache, self._names, self._choice, self._policies, self._resolver)

    @classmethod
    def open(cls, cache_dir: str | os.PathLike[str] | None = None, *, local_files_only: bool = False) -> Hub:
        """Return the hub of this user, by the environment and the settings; no request is sent yet.

        Args:
            cache_dir: another folder for the cache.
            local_files_only: use no network, whatever the environment says.

        Raises:
            ConfigError: the settings are damaged.
        """
        settings = Settings.read()
        cache = Cache(Path(cache_dir) if cache_dir else cache_home())
        lookup = CachedNames(cache).lookup
        openers = {
            e.name: partial(open_source, e, cache.root / INDEXES, lookup, cache.root / PARTIAL)
            for e in settings.sources
        }
        trust = {key: e.trust for e in settings.sources if e.trust for key in (e.name, e.url)}
        return cls(Sources(openers), cache, Rules.of(settings), local_files_only=local_files_only, trust=trust)

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
        return {source.name: source.registry for source in self._choice.on() if isinstance(source, RegistrySource)}

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
        """Amend the metadata of a version after its push, in the first source that has it; its content and digest stay.

        Returns:
            The version with its source, and its new metadata.

        Raises:
            NotFoundError: no source has it.
            ConfigError: the source keeps no such changes.
        """
        source, document = self.document(reference)
        version, entry = source.amend(document.name, reference.version, amendment)
        return Reference(document.name, source=source.name, version=version), entry

    def resolve(
        self, reference: Reference | Link, *, fresh: bool = False, transfer: Transfer | None = None
    ) -> Resolved:
        """Return the version that a reference or a link means.

        Args:
            fresh: do not fall back to the meaning at its last pull.
            transfer: progress callbacks for files that must be fetched to resolve a link.

        Raises:
            NotFoundError: no source has it, or the first that has it lacks the version.
            UnreachableError: a source that may have it does not answer.
            IntegrityError: the manifest is damaged.
        """
        return self._resolver.resolve(reference, fresh=fresh, progress=transfer.progress if transfer else None)

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

    def push(
        self,
        folder: str | os.PathLike[str],
        name: str | None = None,
        *,
        tags: Collection[str] = (),
        aliases: Collection[str] = (),
        message: str = "",
        to: str | None = None,
        expect: Mapping[str, str | None] | None = None,
        progress: Progress | None = None,
        sign: PrivateKey | None = None,
        private: bool | None = None,
        allow_pickle: bool = False,
        allow_untrained: bool = False,
    ) -> Pushed:
        """Publish a folder with a delta in any format; every file is verified first.

        Args:
            name: its name, ``"namespace/name"``; by default made from its task and backbone.
            tags: labels and key=value pairs, beside those saved in the checkpoint.
            aliases: movable names to point to it.
            to: the source to publish to, or the folder or s3:// address of a registry; by default the default source.
            expect: alias to the version that it must point to now, None if it must not exist.
            sign: the key to sign it with. It is signed before it is published, so that it is never visible unsigned.
            private: whether a new delta on a hub is visible to its owners only; None for the hub's default.
            allow_pickle: whether weights that are a Python pickle are published; they are not opened.
            allow_untrained: whether a delta that provably changes nothing is published.

        Raises:
            ConflictError: an alias does not point to the expected version. No version was added.
            CheckpointError: the folder does not hold a complete delta, or one that changes nothing.
            PickleRefusedError: its weights are a pickle, and `allow_pickle` is false.
            IntegrityError: a file differs from the saved one.
            ReferenceSyntaxError: the name, a tag or an alias is not well formed.
            ConfigError: the source is disabled, or cannot be pushed to.
        """
        publication = Publication.of(
            Path(folder),
            name,
            to=to,
            tags=tags,
            aliases=aliases,
            message=message,
            expect=expect,
            private=private,
            signer=sign,
            allow_pickle=allow_pickle,
            allow_untrained=allow_untrained,
        )
        return self.publish(publication, progress)

    def publish(self, publication: Publication, progress: Progress | None = None) -> Pushed:
        """Publish a checkpoint at the source of its reference; with a key, it is signed first.

        Raises:
            ConflictError: an alias does not point to the expected version. No version was added.
            IntegrityError: a file changed since the publication was made.
            ConfigError: the source is disabled, or cannot be pushed to.
        """
        return push(self._choice.reachable(publication.reference.source), publication, progress)

    def push_many(
        self,
        folders: Sequence[str | os.PathLike[str]],
        namespace: str | None = None,
        *,
        tags: Collection[str] = (),
        message: str = "",
        to: str | None = None,
        progress: Progress | None = None,
        expected: Progress | None = None,
        sign: PrivateKey | None = None,
        allow_pickle: bool = False,
        allow_untrained: bool = False,
        record: Callable[[Path], object] | None = None,
    ) -> list[Outcome[Pushed]]:
        """Publish many checkpoint folders; a registry takes them in one batch, which is far faster than one by one.

        Args:
            namespace: name each after its folder, in this namespace; by default each is named as in `push`.
            tags: for all deltas; likewise `message`.
            to: see `push`; likewise `sign`, `allow_pickle` and `allow_untrained`.
            progress: receives the bytes published; `expected` those to come.
            record: see `Publication.of`.

        Returns:
            For each its result, or the error that kept it from being published; the others are published.

        Raises:
            StorageError: the source failed as a whole. All can be published again.
            ConfigError: they are to be signed, and the source is not a registry. Nothing was published.
            ReferenceSyntaxError: the namespace is not well formed.
        """
        source = self._choice.reachable(to)
        if sign:
            as_registry(source)  # refuse before reading every file
        make = partial(
            Publication.of,
            to=source.name,
            tags=tags,
            message=message,
            signer=sign,
            allow_pickle=allow_pickle,
            allow_untrained=allow_untrained,
            record=record,
        )
        requests = publications([*map(Path, folders)], namespace, make)
        if expected:
            expected(sum(request.manifest.size for request in requests if isinstance(request, Publication)))
        return push_many(source, requests, progress)

    def publish_many(
        self, requests: Sequence[Outcome[Publication]], to: str | None = None, progress: Progress | None = None
    ) -> list[Outcome[Pushed]]:
        """Publish many checked checkpoints at one source; an error stands for one that could not be checked, and is its result.

        Raises:
            StorageError: the source failed as a whole. All can be published again.
        """
        return push_many(self._choice.reachable(to), requests, progress)

    def pull(
        self,
        reference: Reference | Link,
        *,
        to: Path | None = None,
        force: bool = False,
        transfer: Transfer | None = None,
        at_once: int = FILES_AT_ONCE,
        trust: Sequence[str] = (),
    ) -> Pulled:
        """Bring a delta into the cache, every byte verified.

        Args:
            to: also copy its files into this folder, which is new or holds a delta.
            force: fetch it even if it is cached, and overwrite a delta in `to` without another copy.
            transfer: progress callbacks.
            at_once: how many files are fetched at the same time over the network.
            trust: keys in PEM, one of which must have signed it, whatever its registry requires.

        Raises:
            SignatureError: it has no valid signature by a trusted key.
            NotFoundError: no source has it, or `DELTAHUB_LOCK` names a lock file without it.
            ConfigError: `DELTAHUB_LOCK` is set, and it is a link without a pin.
            UnreachableError: a source that may have it does not answer, and it is not cached.
            IntegrityError: the source is damaged, or its content differs from the locked one.
            CheckpointError: `to` holds other files, or a delta without another copy.
        """
        return self._puller.pull(reference, to=to, force=force, transfer=transfer, at_once=at_once, trust=trust)

    def pull_all(
        self,
        references: Sequence[Reference | Link],
        *,
        force: bool = False,
        transfer: Transfer | None = None,
        trust: Sequence[str] = (),
    ) -> list[Outcome[Pulled]]:
        """Bring several deltas into the cache, some at the same time.

        Returns:
            The pulled delta or else the error, in the order of `references`; an error does not stop the others.
        """
        return several(
            lambda reference: self.pull(reference, force=force, transfer=transfer, at_once=1, trust=trust), references
        )

    def pin(self, reference: Reference) -> Pin:
        """Return the current meaning of a reference, for a lock file.

        Raises:
            NotFoundError: no source has it.
            SignatureError: its registry requires a signature, and it has no valid one by a trusted key.
        """
        return self._puller.pin(reference)

    def sync(self, lock: Lock, progress: Progress | None = None) -> list[Pulled]:
        """Bring all deltas of a lock file into the cache, every byte verified.

        Raises:
            IntegrityError: the content in a source differs from the locked one, or is damaged.
        """
        return self._puller.sync(lock, progress)

    def vouched(self, registry: Registry) -> Vouched | None:
        """Return a function that refuses versions without the signature that a registry requires: see `Policies.vouched`."""
        return self._policies.vouched(registry)


def _as_source(sources: Mapping[str, Source | Registry], name: str, indexes: Path, lookup: CacheLookup) -> Source:
    source = sources[name]
    return RegistrySource(source, indexes, lookup) if isinstance(source, Registry) else source
