"""Endpoints that list the large files (LFS) of a repository's whole history, and remove files from every version.

Versions never change. So removing a file removes the versions that hold it, and gives each branch that ended with one a new version
without the file. The bytes go with the next garbage collection.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.checkpoint.from_files import describe_files
from deltahub.errors import ConflictError
from deltahub.reference import MAIN
from deltahub.registry import stamps, uploads
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version, summary_of
from deltahub.server import paging
from deltahub.server.bodies import LARGE, with_json
from deltahub.server.errors import ENTRY_NOT_FOUND, NOT_SUPPORTED, Refusal
from deltahub.server.paths import MODEL
from deltahub.server.repositories import Repository, may_change, open_repository
from deltahub.server.routes.changes import HeadMoved
from deltahub.server.routes.operations import is_oid
from deltahub.server.routes.revisions import stamp_of
from deltahub.server.routes.trees import moment
from deltahub.server.telemetry import note

_MOST: Final = 1000  # files to remove at once
_LOOKED_AT: Final = 250_000  # files of all versions


def list_large_files(request: Request) -> Response:
    """List the large files of all branches, each with the branch and the time of the version that brought it.

    Raises:
        Refusal: the caller may not write to the repository, or its versions hold too many files.
    """
    repository = open_repository(request, write=True)
    lines = list(_lines(repository))
    start, count = paging.window(request)
    return paging.page(request, lines[start : start + count], start=start, count=count, total=len(lines))


def _lines(repository: Repository) -> Iterator[dict[str, Any]]:
    known, looked_at = set[tuple[str, str]](), 0
    document = repository.document
    for branch, head in repository.branches().items():
        for version in reversed([*document.history(head)] if head else []):
            commit = repository.commit(version)
            is_large = repository.large_files(commit)
            looked_at += len(commit.manifest.files)
            if looked_at > _LOOKED_AT:
                message = f"The versions of {repository.path} hold more than {_LOOKED_AT:,} files, too many to list."
                raise Refusal(413, message)
            for entry in commit.manifest.files:
                if (entry.path, entry.sha256) not in known and is_large(entry):
                    known.add((entry.path, entry.sha256))
                    yield {
                        "fileOid": entry.sha256,
                        "oid": entry.sha256,
                        "filename": entry.path,
                        "pushedAt": moment(document.versions[version].time),
                        "ref": branch,
                        "size": entry.size,
                    }


def remove_large_files(request: Request, body: dict[str, Any]) -> Response:
    """Remove files from the whole history of a repository.

    Raises:
        Refusal: no version holds one of them, or a version that does has a tag.
        HeadMoved: the repository changed concurrently.
    """
    repository = open_repository(request, write=True)
    removed = _digests(body)
    holders = [name for name, entry in repository.document.versions.items() if _holds(repository, entry, removed)]
    if not holders:
        message = f"No version of {repository.path} holds one of these files."
        raise Refusal(404, message, ENTRY_NOT_FOUND)
    if tags := sorted(tag for tag, version in repository.document.aliases.items() if version in holders):
        message = (
            f"Versions with the tags {', '.join(tags)} of {repository.path} hold these files. Delete the tags first."
        )
        raise Refusal(409, message)
    _remove(request, repository, removed, holders)
    uploads.forget(repository.state.registry.store, repository.path, removed)
    note(request, removed=", ".join(holders))
    return JSONResponse({})


def _digests(body: dict[str, Any]) -> set[str]:
    deletions = body.get("deletions")
    digests = deletions.get("sha") if isinstance(deletions, dict) else None
    if not isinstance(digests, list) or not 0 < len(digests) <= _MOST or not all(map(is_oid, digests)):
        raise Refusal(
            400, f"The body needs 'deletions' with 'sha', a list of at most {_MOST:,} sha256 of 64 hex digits."
        )
    if deletions and deletions.get("rewriteHistory") is False:
        message = (
            "A version never lacks its files: leave rewrite_history on, and the versions that hold them are removed."
        )
        raise Refusal(501, message, NOT_SUPPORTED)
    return set(digests)


def _holds(repository: Repository, entry: Version, digests: Collection[str]) -> bool:
    sizes = repository.state.file_sizes(entry.digest)
    return any(sizes.get(sha256) is not None for sha256 in digests)


def _remove(request: Request, repository: Repository, removed: Collection[str], holders: Collection[str]) -> None:
    time, author = stamp_of(request)
    branches, objects, heads = repository.branches(), dict[str, bytes](), dict[str, Version]()
    for branch, head in branches.items():
        if head is None or head not in holders:
            continue
        kept = [entry for entry in repository.commit(head).manifest.files if entry.sha256 not in removed]
        manifest = describe_files(kept, repository.state.read)
        objects[manifest.digest.hex] = manifest.to_bytes()
        message = stamps.text("Files were permanently deleted")
        tags = repository.document.versions[head].tags
        heads[branch] = Version(manifest.digest, time, author, message, tags, dict(summary_of(manifest)), parent=head)

    def change(document: ReferenceDocument) -> ReferenceDocument:
        if (document.versions, document.branches) != (repository.document.versions, repository.document.branches):
            raise HeadMoved(repository.path)
        ends = {**branches}
        for branch, head in heads.items():
            document, ends[branch] = document.with_version(head)
        for branch, end in sorted(ends.items(), key=lambda item: item[0] == MAIN):
            document = document.with_branch(branch, end, time, author)
        for version in holders:
            document = document.without_version(version, time, author, "a file was permanently deleted")
        return document

    try:
        repository.registry(request).add(objects, repository.path, change)
    except ConflictError as error:
        raise HeadMoved(repository.path) from error


routes: Final = [
    Route(f"{MODEL}/lfs-files", list_large_files),
    Route(f"{MODEL}/lfs-files/batch", with_json(remove_large_files, may_change, LARGE), methods=["POST"]),
]
