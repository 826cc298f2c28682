"""A registry: deltas with versions, aliases and tags, over any store.

    objects/sha256/<2>/<62>           files and manifests, immutable and shared by all deltas
    refs/<namespace>/<name>.json      the reference document of each delta

A push writes the objects, then swaps the document; a reader goes the other way. Whatever is interrupted leaves at most
objects that nobody refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deltahub.address import nearest_names
from deltahub.errors import ConflictError, IntegrityError, NotFoundError, ReferenceSyntaxError
from deltahub.manifest import FileEntry, Manifest, digest_of
from deltahub.reference import Reference, check_alias, check_tag
from deltahub.registry import stamps
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version, merged_tags
from deltahub.registry.summary import summary_of
from deltahub.registry.sweeping import spare, store_spared
from deltahub.stores.base import Progress, Source, Store, object_key

REFS: Final = "refs/"
_ATTEMPTS: Final = 20  # of a swap, each after reading what others wrote
_HOPS: Final = 16  # from name to name, for what was renamed more than once

Change = Callable[[ReferenceDocument], ReferenceDocument]


@dataclass(frozen=True)
class Found:
    """One version of one delta in a registry.

    Attributes:
        document: the delta's reference document.
        version: ``"v3"``.
        manifest: its manifest.
    """

    document: ReferenceDocument
    version: str
    manifest: Manifest

    @property
    def entry(self) -> Version:
        """What is said about the version."""
        return self.document.versions[self.version]


class Registry:
    """Deltas in a store.

    Args:
        store: where the bytes are.
        name: what this registry is called as a source.
    """

    def __init__(self, store: Store, name: str = "local") -> None:
        self.store = store
        self.name = name
        self._said: set[str] = set()  # renamed deltas that were told of

    # ----- reading -----

    def document(self, path: str) -> ReferenceDocument:
        """The reference document of a delta.

        Args:
            path: ``"namespace/name"``.

        Raises:
            NotFoundError: there is no such delta; the message names the nearest names.
        """
        document, _ = self.read(path)
        if document is None:
            raise self._unknown(path)
        return document

    def read(self, path: str) -> tuple[ReferenceDocument | None, str | None]:
        """The reference document of a delta and its etag, both None if there is none; an old name leads to the new one."""
        asked = path
        for _ in range(_HOPS):
            document, etag = self._tagged(path)
            if document is None or document.moved_to is None:
                self._say_renamed(asked, path)
                return document, etag
            path = document.moved_to
        raise IntegrityError(
            f"The reference document of {asked}",
            "a delta",
            "names that lead to each other",
            "Push it under a new name.",
        )

    def stored(self, path: str) -> ReferenceDocument | None:
        """The document under a name as it is stored: an old name is not followed. None if there is none.

        Raises:
            IntegrityError: it is damaged.
            NotFoundError: it is the document of another delta.
        """
        return self._tagged(path)[0]

    def _tagged(self, path: str) -> tuple[ReferenceDocument | None, str | None]:
        found = self.store.read_tagged(ref_key(path))
        if found is None:
            return None, None
        document = ReferenceDocument.from_bytes(found[0], path)
        if document.name != path:  # also on a disk that takes upper and lower case for the same
            raise NotFoundError(path, (self.place,), (document.name,))
        return document, found[1]

    def _say_renamed(self, asked: str, name: str) -> None:
        if asked != name and asked not in self._said:
            import logging  # late: hardly ever needed

            self._said.add(asked)
            logging.getLogger("deltahub").warning("%s was renamed: it is %s now.", asked, name)

    def _unknown(self, path: str) -> NotFoundError:
        return NotFoundError(path, (self.place,), nearest_names(path, self.names()))

    @property
    def place(self) -> str:
        """The registry's name and where it is, for people."""
        return f"{self.name} ({self.store.url})"

    def names(self) -> list[str]:
        """The names of all deltas, ``"namespace/name"``, sorted."""
        return [key[len(REFS) : -len(".json")] for key, _ in self.store.keys(REFS) if key.endswith(".json")]

    def resolve(self, reference: Reference) -> Found:
        """The version that a reference means, with its manifest.

        Raises:
            NotFoundError: no such delta or version.
            IntegrityError: the manifest is damaged.
        """
        return self.found(self.document(reference.path), reference.version)

    def found(self, document: ReferenceDocument, asked: str | None) -> Found:
        """The version of a delta that a version, alias or digest means; None means the newest."""
        version = document.resolve(asked)
        return Found(document, version, self.manifest(document.versions[version].digest))

    def manifest(self, digest: str) -> Manifest:
        """A manifest by its digest.

        Raises:
            IntegrityError: it is damaged or gone.
        """
        try:
            data = self.store.read(object_key(_digits(digest)))
        except NotFoundError as error:
            remedy = "Repair it with `deltahub verify --repair`, or push the delta again."
            raise IntegrityError(f"The manifest {digest}", "the published bytes", "nothing", remedy) from error
        return Manifest.from_bytes(data, digest)

    def fetch(self, entry: FileEntry, into: Path, progress: Progress | None = None) -> None:
        """Copy a file to a new place, checked.

        Raises:
            IntegrityError: the stored bytes are not the published ones; nothing is left at `into`.
        """
        what = f"{entry.path} in the registry {self.place}"
        remedy = "Push the delta again from an intact copy."
        try:
            found = self.store.fetch(object_key(entry.sha256), into, progress)
        except NotFoundError as error:
            raise IntegrityError(what, f"sha256:{entry.sha256}", "nothing", remedy) from error
        if found != entry.sha256:
            into.unlink()
            raise IntegrityError(what, f"sha256:{entry.sha256}", f"sha256:{found}", remedy)

    # ----- writing -----

    def publish(
        self,
        reference: Reference,
        manifest: Manifest,
        folder: Path,
        *,
        tags: Collection[str] = (),
        aliases: Collection[str] = (),
        message: str = "",
        expect: Mapping[str, str | None] | None = None,
        progress: Progress | None = None,
    ) -> tuple[str, bool]:
        """Publish a checkpoint folder as a new version; the same content again is no new version.

        Args:
            folder: where the files of `manifest` lie.
            expect: what aliases must point to now, None for nothing; other aliases that are given move from wherever they are.

        Returns:
            The version, and whether it is new.

        Raises:
            ReferenceSyntaxError: a delta has this name in other upper and lower case letters.
            IntegrityError: a file changed since the manifest was made.
            ConflictError: an alias points elsewhere than expected. No version was added.
            StorageError: the store is full or not writable.
        """
        checked = [*map(check_tag, tags)], [*map(check_alias, aliases)]
        self.refuse_twin(reference.path)
        data = manifest.to_bytes()
        digest = digest_of(data)
        files: dict[str, Source] = {entry.sha256: folder / entry.path for entry in manifest.files}
        time, author = self.stamp()
        added = Version(digest, time, author, stamps.text(message), merged_tags((), checked[0]), summary_of(manifest))
        version, new = "", False

        def change(document: ReferenceDocument) -> ReferenceDocument:
            nonlocal version, new
            for alias, pointed in (expect or {}).items():
                if (now := document.aliases.get(alias)) != pointed:
                    raise ConflictError(f"The alias {document.name}@{alias}", pointed, now)
            changed, version = document.with_version(added)
            new = version not in document.versions
            for alias in checked[1]:
                changed = changed.with_alias(alias, version, time, author)
            return changed

        self.add({**files, _digits(digest): data}, reference.path, change, progress)
        return version, new

    def add(
        self, objects: Mapping[str, Source], path: str, change: Change, progress: Progress | None = None
    ) -> ReferenceDocument:
        """Store objects, then swap the document that refers to them; a collection that runs meanwhile takes none of them.

        Args:
            objects: as `Store.create` takes them.
            change: as `update` takes it.
        """
        generation = store_spared(self.store, objects, progress)
        document = self.update(path, change, may_create=True)
        if spare(self.store, objects.keys()) != generation:
            store_spared(self.store, objects)
        return document

    def stamp(self) -> tuple[str, str]:
        """The time and the author of a change that is made now."""
        return stamps.now(), stamps.author()

    def update(self, path: str, change: Change, *, may_create: bool = False) -> ReferenceDocument:
        """Swap a document for a changed one; a lost race is run again on what the winner wrote.

        Args:
            change: makes the new document from the current one; it raises where running it again would be wrong.
            may_create: whether it may be made from nothing.
        """
        for attempt in range(_ATTEMPTS):
            document, etag = self.read(path)
            if document is None:
                if not may_create:
                    raise self._unknown(path)
                document = ReferenceDocument(path)
            changed = change(document)
            if changed == document:
                self.store.settle([ref_key(document.name)])
                return document
            try:
                self.store.swap(ref_key(document.name), changed.to_bytes(), etag)
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return changed
        raise AssertionError("unreachable")

    def refuse_twin(self, path: str) -> None:
        """Raise if a delta has this name in other upper and lower case letters."""
        if self.store.read_tagged(ref_key(path)) is not None:
            return
        namespace = path.partition("/")[0]
        for known in self.names():
            theirs = known.partition("/")[0]
            for new, old in ((path, known), (namespace, theirs)):
                if new != old and new.lower() == old.lower():
                    msg = f"{new!r} and {old!r}, which exists, differ only in upper and lower case. Use the existing writing."
                    raise ReferenceSyntaxError(msg)


def ref_key(path: str) -> str:
    """The key of a delta's reference document."""
    return f"{REFS}{path}.json"


def _digits(digest: str) -> str:
    return digest.removeprefix("sha256:")
