"""Registry content shown on pages, limited to what the caller may see."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from deltahub.checkpoint.manifest import FileEntry
from deltahub.errors import IntegrityError
from deltahub.reference import Digest
from deltahub.registry.registry import Found
from deltahub.server.access import caller_of
from deltahub.server.errors import ENTRY_NOT_FOUND, REPO_NOT_FOUND, Refusal
from deltahub.server.gating import require_content
from deltahub.server.repositories import Repository, find_repository, open_repository
from deltahub.server.state import state_of
from deltahub.stores.base import object_key

T = TypeVar("T")


def hidden_names(request: Request) -> tuple[str, ...]:
    """Return the names of all deltas that the caller may not see.

    Raises:
        Refusal: the caller may not see anything.
    """
    caller = caller_of(request)
    if caller.scope == "none":
        raise Refusal(401, "This hub requires a token. Sign in with one that has read access.")
    private = state_of(request).records.private()
    return tuple(name for name in private if not caller.may_read(name.namespace, private=True))


def query_visible(request: Request, ask: Callable[[tuple[str, ...]], T]) -> T:
    """Query the index for the deltas that the caller may see.

    Args:
        ask: queries it, given the names to hide; repeated if further deltas became hidden meanwhile.

    Raises:
        Refusal: the caller may not see anything.
    """
    hidden = hidden_names(request)
    while True:
        answer, hidden_now = ask(hidden), hidden_names(request)
        if {*hidden_now} <= {*hidden}:
            return answer
        hidden = (*dict.fromkeys((*hidden, *hidden_now)),)


def repository_of(request: Request, path: str | None = None) -> Repository:
    """Return the repository of the URL, which has at least one version.

    Args:
        path: another repository, ``"namespace/name"``.

    Raises:
        Refusal: the caller may not see it, or it is missing or empty.
    """
    repository = find_repository(request, path) if path else open_repository(request)
    require_content(request, repository)
    if not repository.document.versions:
        raise Refusal(404, f"{repository.path} exists, but has no version yet.", REPO_NOT_FOUND)
    return repository


def version_of(repository: Repository, revision: str) -> Found:
    """Return a version with its manifest.

    Args:
        revision: a version, alias, branch, commit or digest.

    Raises:
        Refusal: the version does not exist.
        IntegrityError: its manifest is damaged.
    """
    commit = repository.at(revision)
    assert commit.version
    return Found(repository.document, commit.version, commit.manifest)


def file_of(delta: Found, path: str) -> FileEntry:
    """Return a file of a version.

    Raises:
        Refusal: the version has no such file.
    """
    for entry in delta.manifest.files:
        if entry.path == path:
            return entry
    raise Refusal(404, f"{delta.document.name}@{delta.version} has no file {path!r}.", ENTRY_NOT_FOUND)


def content_of(request: Request, entry: FileEntry) -> bytes:
    """Read and verify a file; check its size first.

    Raises:
        NotFoundError: it is missing.
        IntegrityError: its bytes do not match the digest.
    """
    data = state_of(request).registry.store.read(object_key(entry.sha256))
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        remedy = "Ask the administrator of this hub to run `deltahub verify --repair`."
        raise IntegrityError(entry.path, Digest.of_hex(entry.sha256), Digest.of_hex(digest), remedy)
    return data
