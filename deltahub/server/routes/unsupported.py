"""Endpoints that Hub clients expect, and 404 answers for unsupported features."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.server.access import repository_not_found, require_write
from deltahub.server.bodies import LARGE, text_field, with_json
from deltahub.server.errors import REPO_NOT_FOUND, Refusal
from deltahub.server.paths import MODEL, REPOSITORY
from deltahub.server.repositories import open_repository
from deltahub.text.front_matter import front_matter


def validate_yaml(request: Request, body: dict[str, Any]) -> Response:
    """Report errors in the front matter of a card."""
    try:
        front_matter(text_field(body, "content"))
    except ValueError as error:
        message = f"The front matter of the card cannot be read: {error}."
        return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})


def allow_anyone(request: Request) -> None:
    """Allow callers without any permission: Hub clients validate a card without a token."""


def auth_check(request: Request) -> Response:
    """Answer whether the caller may read a repository, or with ``/write`` change it."""
    action = request.path_params.get("action", "")
    if action not in ("", "write"):
        raise Refusal(404, f"{action!r} is not a permission: expected write.")
    repository = open_repository(request, write=bool(action))
    if action:
        require_write(request, repository.path.namespace)
    return JSONResponse({})


def refuse_kind(request: Request) -> Response:
    """Refuse requests for data sets, spaces and kernels."""
    message = "This hub holds models only, no datasets, spaces or kernels. Leave --repo-type and repo_type out."
    raise Refusal(404, message, REPO_NOT_FOUND)


def refuse_bare_name(request: Request) -> Response:
    """Answer that a name without a namespace does not exist."""
    raise repository_not_found(request, request.path_params.get("repository", "This address"))


def refuse_xet(request: Request) -> Response:
    """Refuse a client that wants to upload to a Xet store."""
    message = (
        "This hub has no Xet storage. Set HF_HUB_DISABLE_XET=1 for this client, or ask the administrator of the hub to start it with "
        "--upload-mode regular, which every client can."
    )
    raise Refusal(404, message)


def refuse_discussions(request: Request) -> Response:
    """Refuse requests for pull requests and discussions."""
    raise Refusal(404, "This hub has no pull requests or discussions. Commit to a branch instead.")


_ALL: Final = ["GET", "POST", "PUT", "DELETE", "PATCH"]
routes: Final = [
    Route("/api/validate-yaml", with_json(validate_yaml, allow_anyone, LARGE), methods=["POST"]),
    Route(f"{MODEL}/auth-check", auth_check),
    Route(f"{MODEL}/auth-check/{{action:part}}", auth_check),
    Route(f"{MODEL}/xet-write-token/{{revision:part}}", refuse_xet),
    Route(f"{MODEL}/xet-read-token/{{revision:part}}", refuse_xet),
    Route(f"{MODEL}/discussions", refuse_discussions, methods=_ALL),
    Route(f"{MODEL}/discussions/{{rest:rest}}", refuse_discussions, methods=_ALL),
    *(
        route
        for kind in ("datasets", "spaces", "kernels")
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
]
