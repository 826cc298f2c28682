"""Endpoints for a commit's files: folder listings, and information on single paths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deltahub.checkpoint.manifest import FileEntry
from deltahub.files.documents import canonical_json
from deltahub.server import paging
from deltahub.server.bodies import with_fields
from deltahub.server.counted_responses import WholeJSONResponse, counted
from deltahub.server.errors import ENTRY_NOT_FOUND, Refusal
from deltahub.server.git_attributes import GITATTRIBUTES
from deltahub.server.paths import MODEL
from deltahub.server.repositories import FIRST_COMMIT, Commit, Repository, open_repository
from deltahub.server.routes.blobs import Blob, blobs_of

LISTED: Final = 1000  # approximate bytes of memory per listed file
_EXPANDED: Final = 100  # entries per page with the last commit of each
_MOST_PATHS: Final = 1000  # per request
_LOOKED_AT: Final = 250_000  # files of older commits compared per response


def _file(blob: Blob) -> dict[str, Any]:
    entry = blob.entry
    return {"type": "file", "oid": blob.oid, "size": entry.size, "path": entry.path, **blob.lfs("oid")}


def _folder(path: str, inside: Iterable[FileEntry]) -> dict[str, Any]:
    content = canonical_json([[entry.path, entry.sha256] for entry in inside])
    oid = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "directory", "oid": oid, "size": 0, "path": path}


def _folders(files: Iterable[FileEntry]) -> dict[str, list[FileEntry]]:
    """Return all folders, each with every file below it."""
    folders: dict[str, list[FileEntry]] = {}
    for entry in files:
        end = entry.path.find("/")
        while end >= 0:
            folders.setdefault(entry.path[:end], []).append(entry)
            end = entry.path.find("/", end + 1)
    return folders


def list_tree(request: Request) -> Response:
    """List the files and folders in a folder of a commit, or with ``recursive`` all below it, sorted by path.

    Raises:
        Refusal: the folder does not exist.
    """
    repository = open_repository(request)
    commit = repository.at(request.path_params["revision"])
    folder = request.path_params.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    below = [entry for entry in commit.files if entry.path.startswith(prefix)]
    if folder and not below:
        headers = {"X-Repo-Commit": commit.id}
        raise Refusal(404, f"{folder} is not a folder of {repository.path} at {commit.id}.", ENTRY_NOT_FOUND, headers)
    return counted(request, LISTED * len(below), lambda: _tree_page(request, repository, commit, prefix, below))


def _tree_page(
    request: Request, repository: Repository, commit: Commit, prefix: str, below: Sequence[FileEntry]
) -> Response:
    """Return one page of a list of files and folders.

    Args:
        prefix: the path of the folder, ending with "/"; empty for the root.
        below: the files below it.
    """
    entries = _entries(below, prefix, deep=_flag(request, "recursive"))
    start, count = paging.window(request, _EXPANDED if _flag(request, "expand") else None)
    inside = _folders(below)
    shown = entries[start : start + count]
    blobs = iter(blobs_of(repository, commit, (item for item in shown if isinstance(item, FileEntry))))
    lines = [_folder(item, inside[item]) if isinstance(item, str) else _file(next(blobs)) for item in shown]
    if _flag(request, "expand"):
        _add_last_commits(repository, commit, lines)
    return paging.page(request, lines, start=start, count=count, total=len(entries))


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in ("1", "true")


def _entries(below: Iterable[FileEntry], prefix: str, *, deep: bool) -> list[FileEntry | str]:
    """Return files as entries and folders as paths, sorted by path."""
    entries: dict[str, FileEntry | str] = {}
    for entry in below:
        parts = entry.path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if deep else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            entries[folder] = folder
        if deep or len(parts) == 1:
            entries[entry.path] = entry
    return [entries[path] for path in sorted(entries)]


def _add_last_commits(repository: Repository, commit: Commit, lines: list[dict[str, Any]]) -> None:
    """Add to each entry the commit that last changed it; omitted where that is further back than is searched."""
    pending: dict[str, dict[str, Any]] = {entry["path"]: entry for entry in lines}
    if commit.has_attributes and all(entry.path != GITATTRIBUTES for entry in commit.manifest.files):
        first = {"id": repository.id_of(None), "title": FIRST_COMMIT, "date": moment(repository.created)}
        pending.pop(GITATTRIBUTES, {})["lastCommit"] = first
    if commit.version is None:
        return
    content = _content(commit.files, pending)
    last, looked_at = commit, 0
    for version in [*repository.document.history(commit.version)][1:]:
        parent = repository.commit(version)
        looked_at += _EXPANDED + len(parent.manifest.files)
        if looked_at > _LOOKED_AT:
            return
        parent_content = _content(parent.files, pending)
        for path in [path for path in pending if content[path] != parent_content[path]]:
            pending.pop(path)["lastCommit"] = _commit_info(last)
        if not pending:
            return
        last = parent
    for entry in pending.values():
        entry["lastCommit"] = _commit_info(last)


def _content(files: Iterable[FileEntry], paths: Iterable[str]) -> Mapping[str, frozenset[tuple[str, str]]]:
    """Return the files at or below each path, as pairs of path and sha256."""
    contents: dict[str, list[tuple[str, str]]] = {path: [] for path in paths}
    for entry in files:
        end = len(entry.path)
        while end >= 0:  # the file itself, and its parent folders
            if entry.path[:end] in contents:
                contents[entry.path[:end]].append((entry.path, entry.sha256))
            end = entry.path.rfind("/", 0, end)
    return {path: frozenset(inside) for path, inside in contents.items()}


def _commit_info(commit: Commit) -> dict[str, Any]:
    assert commit.entry is not None
    title = commit.entry.message.partition("\n")[0]
    return {"id": commit.id, "title": title, "date": moment(commit.entry.time)}


def moment(time: str) -> str:
    """Return a time in the form Hub clients expect: with milliseconds."""
    return time if "." in time else time.replace("Z", ".000Z")


def paths_info(request: Request, fields: dict[str, list[str]]) -> Response:
    """Answer with information on single paths of a commit; unknown paths are left out.

    Raises:
        Refusal: too many paths are requested.
    """
    repository = open_repository(request)
    commit = repository.at(request.path_params["revision"])
    paths = fields.get("paths", ())
    if len(paths) > _MOST_PATHS:
        raise Refusal(
            413, f"{len(paths):,} paths are asked for, and {_MOST_PATHS:,} may be at once. Ask in several requests."
        )
    weight = LISTED * len(commit.files)
    return counted(request, weight, lambda: _paths_answer(repository, commit, fields))


def _paths_answer(repository: Repository, commit: Commit, fields: Mapping[str, Sequence[str]]) -> Response:
    files, folders = {entry.path: entry for entry in commit.files}, _folders(commit.files)
    paths = list(dict.fromkeys(text.strip("/") for text in fields.get("paths", ())))
    blobs = {
        blob.entry.path: blob for blob in blobs_of(repository, commit, (files[path] for path in paths if path in files))
    }
    lines: list[dict[str, Any]] = []
    for path in paths:
        if path in blobs:
            lines.append(_file(blobs[path]))
        elif path in folders:
            lines.append(_folder(path, folders[path]))
    if "true" in [text.lower() for text in fields.get("expand", ())]:
        _add_last_commits(repository, commit, lines)
    return WholeJSONResponse(lines)


routes: Final = [
    Route(f"{MODEL}/tree/{{revision:part}}", list_tree),
    Route(f"{MODEL}/tree/{{revision:part}}/{{path:rest}}", list_tree),
    Route(f"{MODEL}/paths-info/{{revision:part}}", with_fields(paths_info, open_repository), methods=["POST"]),
]
