"""The effect of a commit on a branch: the resulting files, and the version that holds them.

Nothing is written before everything has been checked, and the version is created only if the branch head has not changed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request

from deltahub.checkpoint.checkpoint import CARD
from deltahub.checkpoint.from_files import MANIFEST, describe_files
from deltahub.checkpoint.manifest import FileEntry, Manifest
from deltahub.errors import ConflictError, ReferenceSyntaxError
from deltahub.reference import MAIN, Digest, check_tag
from deltahub.registry import stamps, uploads
from deltahub.registry.case_collisions import refuse_twin
from deltahub.registry.commit_message import commit_id, digest_in, without_digest
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version, merged_tags, number, summary_of
from deltahub.server.errors import ENTRY_NOT_FOUND, Refusal
from deltahub.server.file_names import below, check_path, refuse_clashes
from deltahub.server.git_attributes import DEFAULT_ENTRY, GITATTRIBUTES
from deltahub.server.pickles import refuse_pickle_within
from deltahub.server.quotas import Usage
from deltahub.server.records import Record
from deltahub.server.repositories import Repository, is_delta
from deltahub.server.routes.model_info import CARD_KEYS
from deltahub.server.routes.operations import Added, Deleted, Named, Operations
from deltahub.server.routes.revisions import stamp_of
from deltahub.stores.base import Source
from deltahub.text.front_matter import texts

_MOST_FILES: Final = 25_000  # per version
_PARENT: Final = re.compile(r"[0-9a-f]{7,40}")


class HeadMoved(Refusal):
    """The branch head changed concurrently.

    Args:
        path: the repository, ``"namespace/name"``.
    """

    def __init__(self, path: str) -> None:
        super().__init__(409, f"Others kept committing to {path}. Repeat in a while.", headers={"Retry-After": "1"})


class Change:
    """One commit on top of the current head of its branch.

    Args:
        request: whose commit it is, and when it came.
        repository: as it was read just now.
        branch: where the version goes; there is one of that name.
        operations: what the commit does.
    """

    def __init__(self, request: Request, repository: Repository, branch: str, operations: Operations) -> None:
        self._repository, self._branch, self._operations = repository, branch, operations
        self._state, self._store = repository.state, repository.state.registry.store
        self._registry, self._stamp = repository.registry(request), stamp_of(request)
        self._base = repository.branches().get(branch)
        self._head = repository.commit(self._base)
        self._files: dict[str, Path] = {}  # files sent within the commit, by sha256
        self._uploaded: set[str] = set()  # sha256 of files uploaded beforehand
        self._plain: bool | None = None  # whether the commit deletes the default .gitattributes, or restores it

    def make(self) -> str:
        """Create the version and return its commit id.

        A delta pushed before keeps its version and only gets the new tags: the digest decides, as in the registry.

        Raises:
            Refusal: the commit is not valid.
            HeadMoved: the branch head changed concurrently.
        """
        commit_oid = self._commit()
        if self._plain is not None:
            self._show_attributes(plain=self._plain)
        return commit_oid

    def _show_attributes(self, *, plain: bool) -> None:
        def change(record: Record | None) -> Record:
            if record is None:
                raise HeadMoved(self._repository.path)
            return replace(record, plain=plain)

        self._state.records.change(self._repository.path, change)

    def _commit(self) -> str:
        self._require_parent()
        tree = self._tree()
        manifest = describe_files(tree.values(), self._read)
        tags = self._tags(manifest, tree.get(CARD))
        if manifest.digest == self._head.manifest.digest and self._has(tags):
            return self._head.id
        if version := self._pushed_before(manifest, tree):
            return self._tag(version, tags)
        digests = {entry.sha256 for entry in manifest.files}
        objects: dict[str, Source] = {sha256: file for sha256, file in self._files.items() if sha256 in digests}
        objects[manifest.digest.hex] = manifest.to_bytes()
        new_version = self._version(manifest, tags)
        if not self._repository.document.versions:
            refuse_twin(self._state.registry, self._repository.path)

        def change(document: ReferenceDocument) -> ReferenceDocument:
            return self._with_version(document, new_version)

        more = Usage(manifest.size, 0 if self._repository.document.versions else 1)
        try:
            with self._state.quotas.reserved(self._repository.path.namespace, more):
                self._registry.add(objects, self._repository.path, change)
        except ConflictError as error:
            raise HeadMoved(self._repository.path) from error
        uploads.forget(self._store, self._repository.path, self._uploaded)
        return commit_id(manifest.digest)

    def _pushed_before(self, manifest: Manifest, tree: Mapping[str, FileEntry]) -> str | None:
        """Return the version that already holds the pushed delta; None for new content, or when the commit is not a push."""
        digest = digest_in(self._operations.description)
        published = Digest.of_hex(tree[MANIFEST].sha256) if MANIFEST in tree else None
        if digest is None or digest not in (manifest.digest, published):
            return None
        versions = self._repository.document.versions.items()
        return next((name for name, entry in versions if digest in (entry.digest, digest_in(entry.message))), None)

    def _tag(self, version: str, tags: Collection[str]) -> str:
        def change(document: ReferenceDocument) -> ReferenceDocument:
            if version not in document.versions or document.name != self._repository.path:
                raise HeadMoved(self._repository.path)
            return document.with_tags(version, tags, (), *self._stamp)

        self._registry.update(self._repository.path, change)
        uploads.forget(self._store, self._repository.path, self._uploaded)
        return self._repository.id_of(version)

    def _require_parent(self) -> None:
        parent = self._operations.parent
        if parent is None:
            return
        if not _PARENT.fullmatch(parent):
            raise Refusal(400, f"parentCommit must be 7 to 40 hex digits, got {parent[:60]!r}.")
        if not self._head.id.startswith(parent):
            message = (
                "The branch was updated since you opened this page. Please refresh and try again. "
                f"{self._branch} of {self._repository.path} ends at {self._head.id}, not at {parent}."
            )
            raise Refusal(412, message)

    def _tree(self) -> dict[str, FileEntry]:
        """Return the files after the commit, by path."""
        tree = {entry.path: entry for entry in self._head.manifest.files}
        for operation in self._operations.listed:
            if isinstance(operation, Deleted):
                self._delete(tree, operation)
                continue
            path = check_path(operation.path)
            if (path, operation.sha256) == (GITATTRIBUTES, DEFAULT_ENTRY.sha256) and self._repository.began_here:
                tree.pop(path, None)  # shown without being stored
                self._plain = False
                continue
            if isinstance(operation, Added):
                self._files[operation.sha256] = operation.file
                tree[path] = FileEntry(path, operation.sha256, operation.size)
            else:
                tree[path] = self._entry_of(path, operation)
            read = partial(self._read, tree[path])
            refuse_pickle_within(self._state.settings, self._repository.path.namespace, path, tree[path].size, read)
        if len(tree) > _MOST_FILES:
            message = f"The commit would make a version of {len(tree):,} files, and {_MOST_FILES:,} are the most. Use several repositories."
            raise Refusal(413, message)
        refuse_clashes(tree)
        return tree

    def _delete(self, tree: dict[str, FileEntry], operation: Deleted) -> None:
        deleted_paths = below(operation.path, tree)
        if not operation.folder and operation.path in tree:
            deleted_paths = [operation.path]
        if operation.path == GITATTRIBUTES and self._head.has_attributes:
            self._plain = True
            tree.pop(GITATTRIBUTES, None)
            return
        if not deleted_paths:
            kind = "folder" if operation.folder else "file"
            message = f"A {kind} with this name doesn't exist: {operation.path[:200]!r}."
            raise Refusal(404, message, ENTRY_NOT_FOUND)
        for path in deleted_paths:
            del tree[path]

    def _entry_of(self, path: str, operation: Named) -> FileEntry:
        """Return the entry of a file whose bytes the repository already has or that was uploaded before."""
        size = uploads.size_of(self._store, self._repository.path, operation.sha256)
        if size is not None:
            self._uploaded.add(operation.sha256)
        else:
            size = self._repository.holds(operation.sha256)
        if size is None:
            message = f"The bytes of {path!r} (sha256 {operation.sha256}) were not uploaded to {self._repository.path}. Upload them first."
            raise Refusal(400, message)
        if operation.size not in (None, size):
            raise Refusal(400, f"{path!r} has {size} bytes, but the commit says {operation.size}.")
        return FileEntry(path, operation.sha256, size)

    def _read(self, entry: FileEntry, start: int, end: int) -> bytes:
        if entry.sha256 not in self._files:
            return self._state.read(entry, start, end)
        with self._files[entry.sha256].open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _tags(self, manifest: Manifest, page: FileEntry | None) -> tuple[str, ...]:
        """Return the tags of the version: those of its metadata, and those of the card committed with a delta."""
        candidates = list(manifest.config.get("metadata", {}).get("tags", ()))
        if is_delta(manifest) and page:
            general = {"deltahub", manifest.config["delta_type"]}
            candidates += [
                tag for tag in texts(self._state.card_of(page, self._read).get("tags")) if tag not in general
            ]
        tags: list[str] = []
        for tag in candidates:
            try:
                tags.append(check_tag(tag))
            except ReferenceSyntaxError:  # such a tag stays in the metadata or card
                continue
        return merged_tags((), tags)

    def _has(self, tags: Collection[str]) -> bool:
        entry = self._head.entry
        return entry is None or merged_tags(entry.tags, tags) == entry.tags

    def _version(self, manifest: Manifest, tags: tuple[str, ...]) -> Version:
        time, author = self._stamp
        message = f"{self._operations.summary}\n\n{self._operations.description}".strip()
        if digest_in(message) == manifest.digest:  # the version records the digest itself
            message = without_digest(message)
        summary: dict[str, Any] = dict(summary_of(manifest))
        card = next((self._state.card_of(entry, self._read) for entry in manifest.files if entry.path == CARD), {})
        if card_facts := {key: card[key] for key in CARD_KEYS if key in card}:
            summary["card"] = card_facts
        return Version(manifest.digest, time, author, stamps.text(message), tags, summary)

    def _with_version(self, document: ReferenceDocument, new_version: Version) -> ReferenceDocument:
        """Return the document with the version as the head of its branch.

        Raises:
            HeadMoved: the branch head changed, or a version that files were taken from was removed.
        """
        repository = replace(self._repository, document=document)
        main = document.latest if document.versions else None
        if repository.branches().get(self._branch) != self._base or document.name != self._repository.path:
            raise HeadMoved(self._repository.path)
        if not self._repository.document.versions.keys() <= document.versions.keys():
            raise HeadMoved(self._repository.path)
        newest = max((*document.versions, *document.removed), key=number, default=None)
        parent = None if self._base in (None, newest) else self._base
        changed, version = document.with_version(replace(new_version, parent=parent))
        changed = changed.with_branch(self._branch, version, *self._stamp)
        if self._branch != MAIN and main:
            changed = changed.with_branch(MAIN, main, *self._stamp)
        return changed
