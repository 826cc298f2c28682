"""Repositories: a delta of the registry, or one that was created and has no version yet, as the caller may see it.

A new repository has a first commit without files, as one of git has it on the Hub. It becomes a version once a branch or a tag needs it;
else the first version is what is pushed first.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, replace
from typing import Final

from starlette.requests import Request

from deltahub.checkpoint.from_files import describe_files
from deltahub.checkpoint.manifest import FILES, FileEntry, Manifest
from deltahub.errors import IntegrityError, NotFoundError, RemovedError
from deltahub.reference import MAIN, DeltaPath, as_delta_path
from deltahub.registry.case_collisions import Names
from deltahub.registry.commit_message import DIGITS, commit_id
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.registry import Registry
from deltahub.server.access import caller_of, repository_not_found, require_read, require_write
from deltahub.server.errors import REVISION_NOT_FOUND, Refusal
from deltahub.server.git_attributes import DEFAULT, GITATTRIBUTES, IsLarge, large_files, readable, shown_files
from deltahub.server.records import Record
from deltahub.server.state import State, state_of

_HEADS: Final = "refs/heads/"
_PREFIXES: Final = (_HEADS, "refs/tags/")
_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}")


def _nothing(entry: FileEntry, start: int, end: int) -> bytes:
    raise AssertionError("there is no file")


EMPTY: Final = describe_files((), _nothing)  # what the first commit of a new repository holds
FIRST_COMMIT: Final = "initial commit"  # its message


@dataclass(frozen=True)
class Commit:
    """A version in the Hub's protocol.

    Attributes:
        id: 40 hex digits.
        version: of the delta, e.g. ``"v3"``; None for the first commit of a new repository.
        manifest: what it holds.
        entry: metadata of the version; None for that first commit.
        has_attributes: whether it shows the default ``.gitattributes`` if it has none of its own.
    """

    id: str
    version: str | None
    manifest: Manifest
    entry: Version | None
    has_attributes: bool = False

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files that clients of the Hub see, sorted by path."""
        if not self.has_attributes:
            return self.manifest.files
        return shown_files({entry.path: entry for entry in self.manifest.files})


@dataclass(frozen=True)
class Repository:
    """A repository that the caller may see.

    Attributes:
        path: its name; not the one that was asked for, if it was renamed.
        document: its versions; none of a new one.
        record: what is known beside them; None for what was pushed straight to the registry.
    """

    path: DeltaPath
    document: ReferenceDocument
    record: Record | None
    state: State

    def registry(self, request: Request, request_id: str = "") -> Registry:
        """Return the registry for changes in the name of the caller.

        Args:
            request_id: that the client gave the request; empty for none.
        """
        return self.state.registry.acting(replace(caller_of(request).actor, request=request_id))

    @property
    def private(self) -> bool:
        """Whether it is visible only to tokens valid in its namespace."""
        return self.record is not None and self.record.private

    @property
    def gated(self) -> str | None:
        """How access to its files is given, ``"auto"`` or ``"manual"``; None if everyone who sees it has it."""
        return self.record.gated if self.record else None

    @property
    def born(self) -> str:
        """Creation time by a hub, which distinguishes it from a successor of the same name; empty if pushed straight to the registry."""
        return self.record.created if self.record else ""

    @property
    def began_here(self) -> bool:
        """Whether it was created through the hub, so that its history begins with the first commit of a new repository."""
        return self.record is not None and not self.record.adopted

    @property
    def has_attributes(self) -> bool:
        """Whether its commits show the default ``.gitattributes`` where they have none of their own."""
        return self.began_here and not (self.record and self.record.plain)

    @property
    def created(self) -> str:
        """Creation time, ISO 8601 in UTC."""
        if self.record:
            return self.record.created
        return next(iter(self.document.versions.values())).time

    def find(self, revision: str) -> str | None:
        """Resolve a branch, tag, version or commit id prefix to a version; None for a new repository's first commit.

        Raises:
            Refusal: the revision does not exist.
        """
        name = next((revision.removeprefix(prefix) for prefix in _PREFIXES if revision.startswith(prefix)), revision)
        document = self.document
        if revision.startswith(_HEADS) and name in document.branches:
            return document.branches[name]
        if not document.versions:
            if name == MAIN or (_COMMIT.fullmatch(name) and commit_id(EMPTY.digest).startswith(name[:DIGITS])):
                return None
            raise _no_revision(self.path, revision, "nothing was committed yet, and it has the branch main only")
        if name == MAIN:
            return document.latest
        names = {*document.branches, *document.aliases}
        if _COMMIT.fullmatch(name) and (
            len(name) >= DIGITS or name not in names
        ):  # a full id always means the same commit
            matches = [key for key, entry in document.versions.items() if entry.digest.hex.startswith(name)]
            if len(matches) == 1:
                return matches[0]
            if self.began_here and name == commit_id(EMPTY.digest):  # clients remember it from before the first push
                return None
        try:
            return document.resolve(name)
        except RemovedError as error:
            raise _no_revision(self.path, revision, str(error)) from error
        except NotFoundError as error:
            raise _no_revision(self.path, revision, "no branch, tag, version or commit is called so") from error

    def commit(self, version: str | None) -> Commit:
        """Return a version as a commit; None means the first commit of a new repository."""
        if version is None:
            return Commit(commit_id(EMPTY.digest), None, EMPTY, None, has_attributes=self.has_attributes)
        entry = self.document.versions[version]
        manifest = self.state.manifest(entry.digest)
        return Commit(commit_id(entry.digest), version, manifest, entry, has_attributes=self.has_attributes)

    def large_files(self, commit: Commit) -> IsLarge:
        """Return a function that says whether clients treat a file of a commit as a large one (git LFS)."""
        own = next((entry for entry in commit.manifest.files if entry.path == GITATTRIBUTES), None)
        return large_files(self.state.read(own, 0, own.size) if own and readable(own) else DEFAULT)

    def at(self, revision: str) -> Commit:
        """Return the commit of a revision.

        Raises:
            Refusal: the revision does not exist.
        """
        return self.commit(self.find(revision))

    def id_of(self, version: str | None) -> str:
        """Return the id of a version's commit, without reading its manifest."""
        return commit_id(self.document.versions[version].digest if version else EMPTY.digest)

    def branches(self) -> dict[str, str | None]:
        """Return every branch and its newest version; None for the first commit of a new repository."""
        if not self.document.versions:
            return {MAIN: None}
        return {MAIN: self.document.latest, **self.document.branches}

    def holds(self, sha256: str) -> int | None:
        """Return the size in bytes of a file with this digest in any version; None if no version has it."""
        for entry in reversed(list(self.document.versions.values())):
            if (size := self.state.file_sizes(entry.digest).get(sha256)) is not None:
                return size
        return None


def _no_revision(path: str, revision: str, reason: str) -> Refusal:
    return Refusal(404, f"{path} has no revision {revision!r}: {reason}.", REVISION_NOT_FOUND)


def open_repository(request: Request, *, write: bool = False) -> Repository:
    """Return the repository named by the path parameters `namespace` and `name`.

    Args:
        write: whether it will be changed.

    Raises:
        Refusal: it does not exist, or the caller may not see or change it.
    """
    path = f"{request.path_params['namespace']}/{request.path_params['name']}"
    return find_repository(request, path, write=write)


def may_change(request: Request) -> None:
    """Check that the caller may write to the namespace of the URL; nothing is read.

    Raises:
        Refusal: the caller may not.
    """
    require_write(request, caller_of(request).spelled(request.path_params["namespace"]))


def find_repository(request: Request, name: str, *, write: bool = False) -> Repository:
    """Return the repository with a name, ``"namespace/name"``: see `open_repository`."""
    state, path = state_of(request), as_delta_path(name)
    if path is None:
        raise repository_not_found(request, name)
    if write:
        namespace = caller_of(request).spelled(path.namespace)
        require_write(request, namespace)
        path = DeltaPath(f"{namespace}/{path.name}")
    try:
        repository = lookup_any_case(state, path)
    except NotFoundError:
        repository = None
    except IntegrityError:  # it may be private, and a caller without permission must not learn that it exists
        require_read(request, path.namespace, path in state.records.private(), path)
        raise
    if repository is None:
        raise repository_not_found(request, path)
    require_read(request, repository.path.namespace, repository.private, path)
    if write and repository.path.namespace != path.namespace:
        require_write(request, repository.path.namespace)
    return repository


def lookup_any_case(state: State, path: DeltaPath) -> Repository | None:
    """Look a repository up by name ignoring case, as the Hub does; an exact match takes precedence."""
    with contextlib.suppress(NotFoundError):  # on a case-insensitive disk
        if repository := lookup(state, path):
            return repository
    twin = Names(state.registry).twin(path)
    if twin is None:
        twin = next((DeltaPath(name) for name in state.records.names() if name.lower() == path.lower()), None)
    return lookup(state, twin) if twin and twin != path else None


def is_old_name(path: str, repository: Repository) -> bool:
    """Return whether a repository was requested by a name from before it was renamed."""
    return path.lower() != repository.path.lower()


def lookup(state: State, path: DeltaPath) -> Repository | None:
    """Return a repository by name, regardless of the caller; None if it does not exist.

    A private repository has its record before its first version, and until its last version is gone. So the record is read before
    the document and, if it was missing, again afterwards.
    """
    record = state.records.find(path)
    document, _ = state.registry.read(path)
    if document and document.name != path:
        return lookup(state, document.name)
    if record is None and document and document.versions:
        record = state.records.find(path)
    if record is None and (document is None or not document.versions):
        return None
    return Repository(path, document.remembered() if document else ReferenceDocument(path), record, state)


def is_delta(manifest: Manifest) -> bool:
    """Return whether a version is a DeltaHub delta, not a set of arbitrary files."""
    return manifest.kind != FILES
