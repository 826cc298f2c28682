"""All files of a small delta in one response, in manifest order, so that a client can split and verify them.

Hugging Face clients download file by file; a pull by DeltaHub uses this endpoint when the manifest's response offers it.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deltahub.checkpoint.manifest import Manifest
from deltahub.server.counted_responses import WholeResponse, counted
from deltahub.server.errors import ENTRY_NOT_FOUND, Refusal
from deltahub.server.gating import require_content
from deltahub.server.repositories import is_delta, open_repository
from deltahub.server.state import state_of
from deltahub.stores.base import object_key

OFFER: Final = "X-DeltaHub-Pack"  # header that offers the pack, with its path
MANIFEST_OFFER: Final = "X-DeltaHub-Manifest"
_LARGEST: Final = 1 << 20  # bytes; larger files are better fetched in parallel, and resumed after an interruption


def offer(repository: str, commit: str, manifest: Manifest) -> dict[str, str]:
    """Return the header that offers the pack of a commit; empty if the commit is not a delta or too large."""
    if not is_delta(manifest) or manifest.size > _LARGEST:
        return {}
    return {OFFER: f"/api/deltahub/{repository}/pack/{commit}"}


def manifest_offer(repository: str, commit: str) -> dict[str, str]:
    """Return the header that gives the path of a commit's manifest, for any kind of files."""
    return {MANIFEST_OFFER: f"/api/deltahub/{repository}/manifest/{commit}"}


def manifest(request: Request) -> Response:
    """Answer with the manifest of a commit, as stored in the registry."""
    repository = open_repository(request)
    require_content(request, repository)
    commit = repository.at(request.path_params["revision"])
    if commit.entry is None:
        raise Refusal(404, "Nothing was committed yet.", ENTRY_NOT_FOUND, {"X-Repo-Commit": commit.id})
    data = commit.manifest.to_bytes()

    def make() -> Response:
        return WholeResponse(data, headers={"X-Repo-Commit": commit.id}, media_type="application/json")

    return counted(request, len(data), make)


def pack(request: Request) -> Response:
    """Serve the files of a commit, concatenated.

    Raises:
        Refusal: they are not a delta, or too large.
    """
    repository = open_repository(request)
    require_content(request, repository)
    commit = repository.at(request.path_params["revision"])
    if not offer(repository.path, commit.id, commit.manifest):
        headers = {"X-Repo-Commit": commit.id}
        raise Refusal(404, f"{repository.path} at {commit.id} is not a small delta.", ENTRY_NOT_FOUND, headers)
    store = state_of(request).registry.store

    def make() -> Response:
        data = b"".join(store.read(object_key(entry.sha256)) for entry in commit.manifest.files)
        return WholeResponse(data, headers={"X-Repo-Commit": commit.id}, media_type="application/octet-stream")

    return counted(request, commit.manifest.size, make)


routes: Final = [
    Route("/api/deltahub/{namespace:part}/{name:part}/pack/{revision:part}", pack),
    Route("/api/deltahub/{namespace:part}/{name:part}/manifest/{revision:part}", manifest),
]
