"""Publishing of checkpoints, one or many at once.

Many are published like one, objects first and documents last, but the slow steps happen once for all: one check of pending
deletions, one sync of all files, one sync of all documents. An error is reported for its own checkpoint; the others are published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from deltahub.checkpoint.checkpoint import RESUMED, WEIGHTS
from deltahub.checkpoint.default_name import default_name
from deltahub.checkpoint.effect import require_effect
from deltahub.checkpoint.from_files import describe
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import (
    CheckpointError,
    ConflictError,
    DeltaHubError,
    IntegrityError,
    Outcome,
    ReferenceSyntaxError,
    StorageError,
)
from deltahub.reference import DeltaPath, Digest, Reference, check_alias, check_tag
from deltahub.registry import stamps
from deltahub.registry.case_collisions import Names, refuse_twin
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version, merged_tags, summary_of
from deltahub.registry.gc_state import spare, store_spared
from deltahub.registry.registry import Registry
from deltahub.stores.base import Progress, Source, object_key

if TYPE_CHECKING:
    from deltahub.signing import PrivateKey


@dataclass(frozen=True)
class Publication:
    """A request to publish a checkpoint: made once, by the command or the call of the user, and passed whole.

    Attributes:
        reference: its name. Its source is the destination, None for the default one.
        manifest: its manifest.
        folder: the folder with the files of `manifest`.
        tags: the tags of the version.
        aliases: the aliases to point to it.
        message: why it is pushed.
        expect: alias to the version that it must point to now, None if it must not exist.
        private: whether a new delta is visible to its owners only; None for the default of the source.
        signer: the key to sign it with before it is visible; None to leave it unsigned.
        allow_untrained: whether it is published if it has the tensors of the delta that it was trained on from, which the registry has.
        metrics: results by name, beside those saved in the checkpoint; only a registry keeps them.
    """

    reference: Reference
    manifest: Manifest
    folder: Path
    tags: Collection[str] = ()
    aliases: Collection[str] = ()
    message: str = ""
    expect: Mapping[str, str | None] | None = None
    private: bool | None = None
    signer: PrivateKey | None = None
    allow_untrained: bool = True
    metrics: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        folder: Path,
        name: str | None = None,
        *,
        to: str | None = None,
        tags: Collection[str] = (),
        aliases: Collection[str] = (),
        message: str = "",
        expect: Mapping[str, str | None] | None = None,
        private: bool | None = None,
        signer: PrivateKey | None = None,
        allow_pickle: bool = False,
        allow_untrained: bool = False,
        record: Callable[[Path], object] | None = None,
    ) -> Self:
        """Check a folder with a delta in any format, every file in it, and its name, tags and aliases.

        Args:
            name: ``"[source:]namespace/name"``; by default made from its task and backbone.
            to: the source to publish to.
            tags: labels and key=value pairs, beside those saved in the checkpoint.
            allow_pickle: whether weights that are a Python pickle are published; they are not opened.
            allow_untrained: whether a delta is published that provably changes nothing.
            record: adds the record of its backbone to the folder, once everything else is checked.

        Raises:
            CheckpointError: the folder does not hold a complete delta, or the delta changes nothing and `allow_untrained` is false.
            IntegrityError: a file differs from the saved one.
            PickleRefusedError: its weights are a pickle, and `allow_pickle` is false.
            ReferenceSyntaxError: the name, a tag or an alias is not well formed.
        """
        checked_tags, checked_aliases = [check_tag(tag) for tag in tags], tuple(check_alias(alias) for alias in aliases)
        manifest = describe(folder, allow_pickle=allow_pickle)
        saved_tags = [check_tag(tag) for tag in manifest.config.get("metadata", {}).get("tags", [])]
        if not allow_untrained:
            require_effect(folder, manifest)
        reference = _destination(name or default_name(manifest.config, checked_tags), to)
        if record:
            record(folder)
            manifest = describe(folder, allow_pickle=allow_pickle)
        all_tags = (*saved_tags, *checked_tags)
        return cls(
            reference,
            manifest,
            folder,
            all_tags,
            checked_aliases,
            message,
            expect,
            private,
            signer,
            allow_untrained,
        )


def _destination(name: str, to: str | None) -> Reference:
    """Return the reference to publish as, with its source.

    Raises:
        ReferenceSyntaxError: the name is not well formed, has a version, or names another source than `to`.
    """
    reference = Reference.parse(name)
    if reference.version:
        msg = f"A push numbers its version itself. Leave out '@{reference.version}', or give it as an alias."
        raise ReferenceSyntaxError(msg)
    if to and reference.source and to != reference.source:
        msg = f"{str(reference)!r} names another source than {to!r}. Name one of them."
        raise ReferenceSyntaxError(msg)
    return replace(reference, source=to or reference.source)


@dataclass(frozen=True)
class Published:
    """The result of a publication.

    Attributes:
        document: the delta's reference document.
        version: its version there.
        new: whether its content is a new version.
    """

    document: ReferenceDocument
    version: str
    new: bool


class Addition:
    """The change that a publication makes to a registry; it can be applied again to a document that others changed.

    Args:
        publication: the checkpoint to publish.
        time: the time of the push; likewise `author`.

    Raises:
        ReferenceSyntaxError: a tag or an alias is not well formed.
    """

    def __init__(self, publication: Publication, time: str, author: str) -> None:
        manifest, data = publication.manifest, publication.manifest.to_bytes()
        tags = merged_tags((), [*map(check_tag, publication.tags)])
        message = stamps.text(publication.message)
        self.digest = Digest.of(data)
        self.objects: dict[str, Source] = {entry.sha256: publication.folder / entry.path for entry in manifest.files}
        self.objects[self.digest.hex] = data
        self.version, self.new = "", False
        self._publication = publication
        self._aliases = [*map(check_alias, publication.aliases)]
        self._added = Version(self.digest, time, author, message, tags, _summary(publication))

    def change(self, document: ReferenceDocument) -> ReferenceDocument:
        """Return the document with the version and its aliases.

        Raises:
            ConflictError: an alias does not point to the expected version.
        """
        for alias, pointed in (self._publication.expect or {}).items():
            if (now := document.aliases.get(alias)) != document.expected(pointed):
                raise ConflictError(f"The alias {document.name}@{alias}", pointed, now)
        changed, self.version = document.with_version(self._added)
        self.new = self.version not in document.versions
        for alias in self._aliases:
            changed = changed.with_alias(alias, self.version, self._added.time, self._added.author)
        return changed


def _summary(publication: Publication) -> dict[str, object]:
    """Return the summary of the manifest with the metrics of the publication; saved metrics of the same name are kept."""
    summary = summary_of(publication.manifest)
    if publication.metrics:
        summary["metrics"] = {**publication.metrics, **cast("Mapping[str, object]", summary["metrics"])}
    return summary


def publish(registry: Registry, publication: Publication, progress: Progress | None = None) -> Published:
    """Publish a checkpoint folder as a new version; publishing the same content again adds no version.

    Raises:
        CheckpointError: nothing was trained since its parent, and the publication does not allow that.
        ReferenceSyntaxError: a delta has this name in other upper and lower case letters, or a tag or alias is malformed.
        IntegrityError: a file changed since the manifest was made.
        ConflictError: an alias points elsewhere than expected. No version was added.
        StorageError: the store is full or not writable.
    """
    addition = Addition(publication, *registry.stamp())
    path = publication.reference.path
    refuse_twin(registry, path)
    _require_trained(registry, publication)
    document = registry.add(addition.objects, path, addition.change, progress)
    return Published(document, addition.version, addition.new)


def publish_many(
    registry: Registry, publications: Sequence[Publication], progress: Progress | None = None
) -> list[Outcome[Published]]:
    """Publish many checkpoints; those with the same delta in their order.

    Returns:
        For each its result, or the error that kept it from being published.

    Raises:
        StorageError: the store failed as a whole. Published versions are complete, and all can be published again.
    """
    done: dict[int, Outcome[Published]] = {}
    additions: dict[int, Addition] = {}
    names, stamp = Names(registry), registry.stamp()
    for number, publication in enumerate(publications):
        try:
            additions[number] = Addition(publication, *stamp)
            _require_files(publication)
            _require_trained(registry, publication)
            refuse_twin(registry, publication.reference.path, names)
        except DeltaHubError as error:
            additions.pop(number, None)
            done[number] = error
    objects: dict[str, Source] = {}
    for addition in additions.values():
        objects.update(addition.objects)
    try:
        generation = store_spared(registry.store, objects, progress) if objects else 0
    except IntegrityError as error:  # a file changed since its manifest was made: publish one by one to find it
        if len(additions) > 1:
            done.update({number: publish_many(registry, [publications[number]])[0] for number in additions})
        else:
            done.update(dict.fromkeys(additions, error))
        return [done[number] for number in range(len(publications))]
    done.update(_add(registry, publications, additions))
    if objects and spare(registry.store, objects.keys()) != generation:
        store_spared(registry.store, objects)
    return [done[number] for number in range(len(publications))]


def _add(
    registry: Registry, publications: Sequence[Publication], additions: Mapping[int, Addition]
) -> dict[int, Outcome[Published]]:
    """Swap the documents of stored additions; several to the same delta are one change."""
    groups: dict[DeltaPath, list[int]] = defaultdict(list)
    for number in additions:
        groups[publications[number].reference.path].append(number)
    refused: dict[int, DeltaHubError] = {}

    def together(numbers: Sequence[int]) -> Callable[[ReferenceDocument], ReferenceDocument]:
        def change(document: ReferenceDocument) -> ReferenceDocument:
            for number in numbers:
                refused.pop(number, None)
                try:
                    document = additions[number].change(document)
                except DeltaHubError as error:
                    refused[number] = error
            return document

        return change

    updated = registry.update_all({path: together(numbers) for path, numbers in groups.items()})
    done: dict[int, Outcome[Published]] = {}
    for path, numbers in groups.items():
        document = updated[path]
        for number in numbers:
            addition = additions[number]
            if isinstance(document, DeltaHubError):
                done[number] = document
            else:
                done[number] = refused.get(number) or Published(document, addition.version, addition.new)
    return done


def _require_trained(registry: Registry, publication: Publication) -> None:
    """Refuse a delta with the tensors of the delta that its training was resumed from, if the registry has that one.

    Raises:
        CheckpointError: its file of tensors has the same digest.
    """
    parents = () if publication.allow_untrained else publication.manifest.config.get("parents", ())
    for digest in (Digest(parent["digest"]) for parent in parents if parent["relation"] == RESUMED):
        try:
            manifest = Manifest.from_bytes(registry.store.read(object_key(digest.hex)), digest)
        except DeltaHubError:  # it is not here
            continue
        if _weights(manifest) == _weights(publication.manifest):
            msg = (
                f"{publication.folder} has the tensors of the delta that it was trained on from, {digest.short}: nothing was trained. "
                "Save it after training, or insist with --allow-untrained (allow_untrained=True)."
            )
            raise CheckpointError(msg)


def _weights(manifest: Manifest) -> str | None:
    """Return the sha256 of the tensors of a delta."""
    return next((entry.sha256 for entry in manifest.files if entry.path == WEIGHTS), None)


def _require_files(publication: Publication) -> None:
    """Refuse a publication with missing or changed files before it delays the others."""
    for entry in publication.manifest.files:
        path = publication.folder / entry.path
        try:
            size = path.stat().st_size
        except OSError as error:
            msg = f"{path} cannot be read ({error.strerror}). Restore it, and push again."
            raise StorageError(msg) from error
        if size != entry.size:
            raise IntegrityError(
                str(path), f"{entry.size} bytes", f"{size} bytes", "It changed while it was published; repeat."
            )
