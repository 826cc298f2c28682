"""Endpoints that Hub clients expect, and answers for what this hub does not have: 501, or 404 for a name it cannot hold."""

from __future__ import annotations

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.server.access import repository_not_found, require_write
from deltahub.server.errors import NOT_SUPPORTED, REPO_NOT_FOUND, Refusal
from deltahub.server.gating import require_content
from deltahub.server.paths import MODEL, REPOSITORY
from deltahub.server.repositories import open_repository


def auth_check(request: Request) -> Response:
    """Answer whether the caller may read a repository, or with ``/write`` change it."""
    action = request.path_params.get("action", "")
    if action not in ("", "write"):
        raise Refusal(404, f"{action!r} is not a permission: expected write.")
    repository = open_repository(request, write=bool(action))
    if action:
        require_write(request, repository.path.namespace)
    require_content(request, repository)
    return JSONResponse({})


def refuse_kind(request: Request) -> Response:
    """Refuse requests for data sets, spaces and kernels."""
    message = (
        "This hub holds models only, no datasets, spaces, kernels or buckets. Leave --repo-type and repo_type out."
    )
    raise Refusal(501, message, REPO_NOT_FOUND)  # with this code, clients take the repository for missing


def refuse_bare_name(request: Request) -> Response:
    """Answer that a name without a namespace does not exist."""
    if request.path_params.get("rest", "").partition("/")[0] not in _ACTIONS:
        raise HTTPException(404)
    raise repository_not_found(request, request.path_params.get("repository", "This address"))


def list_likes(request: Request) -> Response:
    """Answer that a user likes nothing: this hub has no likes."""
    return JSONResponse([])


def list_likers(request: Request) -> Response:
    """Answer that nobody likes a repository: this hub has no likes."""
    open_repository(request)
    return JSONResponse([])


def refuse_like(request: Request) -> Response:
    """Refuse to like a repository, or to stop liking it."""
    open_repository(request)
    raise Refusal(501, "This hub has no likes.", NOT_SUPPORTED)


def refuse_collections(request: Request) -> Response:
    """Refuse requests for collections."""
    raise Refusal(501, "This hub has no collections. Give the deltas that belong together a common tag.", NOT_SUPPORTED)


def refuse_unknown(request: Request) -> Response:
    """Answer that an address of the API does not exist, before the pages take it for a repository's."""
    raise HTTPException(404)


def refuse_xet(request: Request) -> Response:
    """Refuse a client that wants to upload to a Xet store."""
    message = (
        "This hub has no Xet storage. Set HF_HUB_DISABLE_XET=1 for this client, or ask the administrator of the hub to start it with "
        "--upload-mode regular, which every client can."
    )
    raise Refusal(404, message)


def refuse_discussions(request: Request) -> Response:
    """Refuse requests for pull requests and discussions."""
    raise Refusal(501, "This hub has no pull requests or discussions. Commit to a branch instead.", NOT_SUPPORTED)


# First segments after a repository's name in the addresses of the Hub.
_ACTION_LIST: Final = """
auth-check branch commit commits compare discussions duplicate lfs-files like likers paths-info preupload refs
resource-group revision scan settings super-squash tag tree treesize user-access-request xet-read-token xet-write-token
"""
_ACTIONS: Final = frozenset(["", *_ACTION_LIST.split()])
_ALL: Final = ["GET", "POST", "PUT", "DELETE", "PATCH"]
routes: Final = [
    Route(f"{MODEL}/auth-check", auth_check),
    Route(f"{MODEL}/auth-check/{{action:part}}", auth_check),
    Route("/api/users/{user:part}/likes", list_likes),
    Route(f"{MODEL}/likers", list_likers),
    Route(f"{MODEL}/like", refuse_like, methods=["POST", "DELETE"]),
    Route("/api/collections", refuse_collections, methods=_ALL),
    Route("/api/collections/{rest:rest}", refuse_collections, methods=_ALL),
    Route(f"{MODEL}/xet-write-token/{{revision:part}}", refuse_xet),
    Route(f"{MODEL}/xet-read-token/{{revision:part}}", refuse_xet),
    Route(f"{MODEL}/discussions", refuse_discussions, methods=_ALL),
    Route(f"{MODEL}/discussions/{{rest:rest}}", refuse_discussions, methods=_ALL),
    *(
        route
        for kind in ("datasets", "spaces", "kernels", "buckets")
        for route in (
            Route(f"/api/{kind}", refuse_kind, methods=_ALL),
            Route(f"/api/{kind}/{{rest:rest}}", refuse_kind, methods=_ALL),
            Route(f"/{kind}{REPOSITORY}/{{rest:rest}}", refuse_kind, methods=_ALL),
        )
    ),
]
# After all others: names without a namespace, which tools request for models of huggingface.co.
last: Final = [
    Route("/api/models/{repository:part}", refuse_bare_name, methods=_ALL),
    Route("/api/models/{repository:part}/{rest:rest}", refuse_bare_name, methods=_ALL),
    Route("/{repository:part}/resolve/{revision:part}/{path:rest}", refuse_bare_name),
    Route("/api/{rest:rest}", refuse_unknown, methods=_ALL),
]
