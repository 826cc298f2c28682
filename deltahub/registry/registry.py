"""A registry: deltas with versions, aliases and tags, over any store.

    objects/sha256/<2>/<62>           files and manifests, immutable and shared by all deltas
    refs/<namespace>/<name>.json      the reference document of each delta

A push writes the objects, then swaps the document; a reader goes the other way. Whatever is interrupted leaves at most
objects that nobody refers to.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from deltahub.address import nearest_names
from deltahub.errors import ConflictError, IntegrityError, NotFoundError, ReferenceSyntaxError
from deltahub.manifest import FileEntry, Manifest, digest_of
from deltahub.reference import Reference, check_alias, check_tag
from deltahub.registry.document import ReferenceDocument, Version, merged_tags, summary_of
from deltahub.stores.base import Progress, Source, Store, object_key

REFS: Final = "refs/"
_ATTEMPTS: Final = 20  # of a swap, each after reading what others wrote

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

    # ----- reading -----

    def document(self, path: str) -> ReferenceDocument:
        """The reference document of a delta.

        Args:
            path: ``"namespace/name"``.

        Raises:
            NotFoundError: there is no such delta; the message names the nearest names.
        """
        found = self.store.read_tagged(_ref_key(path))
        if found is None:
            raise NotFoundError(path, (self.place,), nearest_names(path, self.names()))
        document = ReferenceDocument.from_bytes(found[0], path)
        if document.name != path:  # also on a disk that takes upper and lower case for the same
            raise NotFoundError(path, (self.place,), (document.name,))
        return document

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
            raise IntegrityError(f"The manifest {digest}", "the published bytes", "nothing") from error
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
        progress: Progress | None = None,
    ) -> tuple[str, bool]:
        """Publish a checkpoint folder as a new version; the same content again is no new version.

        Args:
            folder: where the files of `manifest` lie.

        Returns:
            The version, and whether it is new.

        Raises:
            ReferenceSyntaxError: a delta has this name in other upper and lower case letters.
            IntegrityError: a file changed since the manifest was made.
            StorageError: the store is full or not writable.
        """
        checked = [*map(check_tag, tags)], [*map(check_alias, aliases)]
        self._refuse_twin(reference.path)
        data = manifest.to_bytes()
        digest = digest_of(data)
        files: dict[str, Source] = {entry.sha256: folder / entry.path for entry in manifest.files}
        self.store.create({**files, _digits(digest): data}, progress)
        time, author = _now(), _author()
        added = Version(digest, time, author, _text(message), merged_tags((), checked[0]), summary_of(manifest))
        version, new = "", False

        def change(document: ReferenceDocument) -> ReferenceDocument:
            nonlocal version, new
            changed, version = document.with_version(added)
            new = version not in document.versions
            for alias in checked[1]:
                changed = changed.with_alias(alias, version, time, author)
            return changed

        self._update(reference.path, change, may_create=True)
        return version, new

    def set_alias(self, path: str, alias: str, version: str | None) -> ReferenceDocument:
        """Point an alias to a version, or remove it with None."""
        if version is not None:
            check_alias(alias)

        def change(document: ReferenceDocument) -> ReferenceDocument:
            if version is None and alias not in document.aliases:
                raise NotFoundError(f"The alias {path}@{alias}", (f"aliases {', '.join(document.aliases) or 'none'}",))
            target = None if version is None else document.resolve(version)
            return document.with_alias(alias, target, _now(), _author())

        return self._update(path, change)

    def set_tags(self, path: str, version: str | None, add: Collection[str], remove: Collection[str]) -> Version:
        """Add and remove tags of a version.

        Raises:
            NotFoundError: a tag to remove is not there.
        """
        add = [*map(check_tag, add)]

        def change(document: ReferenceDocument) -> ReferenceDocument:
            name = document.resolve(version)
            known = document.versions[name].tags
            if missing := [tag for tag in remove if tag not in known]:
                raise NotFoundError(f"The tag {missing[0]!r} of {path}@{name}", (f"tags {', '.join(known) or 'none'}",))
            return document.with_tags(name, add, remove, _now(), _author())

        document = self._update(path, change)
        return document.versions[document.resolve(version)]

    def _update(self, path: str, change: Change, *, may_create: bool = False) -> ReferenceDocument:
        """Swap a document for a changed one; a lost race is run again on what the winner wrote."""
        key = _ref_key(path)
        for attempt in range(_ATTEMPTS):
            found = self.store.read_tagged(key)
            if found is None and not may_create:
                raise NotFoundError(path, (self.place,), nearest_names(path, self.names()))
            document = ReferenceDocument.from_bytes(found[0], path) if found else ReferenceDocument(path)
            changed = change(document)
            if changed == document:
                return document
            try:
                self.store.swap(key, changed.to_bytes(), found[1] if found else None)
            except ConflictError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return changed
        raise AssertionError("unreachable")

    def _refuse_twin(self, path: str) -> None:
        if self.store.read_tagged(_ref_key(path)) is not None:
            return
        namespace = path.partition("/")[0]
        for known in self.names():
            theirs = known.partition("/")[0]
            for new, old in ((path, known), (namespace, theirs)):
                if new != old and new.lower() == old.lower():
                    msg = f"{new!r} and {old!r}, which exists, differ only in upper and lower case. Use the existing writing."
                    raise ReferenceSyntaxError(msg)


def _ref_key(path: str) -> str:
    return f"{REFS}{path}.json"


def _digits(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _text(typed: str) -> str:
    """What was typed, with '?' for bytes of it that were no UTF-8."""
    return typed.encode(errors="replace").decode()


def _author() -> str:
    if author := os.environ.get("DELTAHUB_AUTHOR"):
        return _text(author)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no entry for its user
        return "unknown"
