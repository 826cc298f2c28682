"""Small things that clients of the Hub ask for, and clear words on what this hub does not hold."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.server.access import repository_not_found, require_write
from deltahub.server.bodies import LARGE, text_field, with_json
from deltahub.server.frontmatter import front_matter
from deltahub.server.paths import MODEL, REPOSITORY
from deltahub.server.refusals import REPO_NOT_FOUND, Refusal
from deltahub.server.repositories import open_repository


def validate_yaml(request: Request, body: dict[str, Any]) -> Response:
    """Say what is wrong with the front matter of a card."""
    try:
        front_matter(text_field(body, "content"))
    except ValueError as error:
        message = f"The front matter of the card cannot be read: {error}."
        return JSONResponse({"errors": [{"message": message}], "warnings": []}, 400)
    return JSONResponse({"errors": [], "warnings": []})


def anyone(request: Request) -> None:
    """Let a caller without any right ask too: clients of the Hub send no token along with a card."""


def auth_check(request: Request) -> Response:
    """Whether the caller may read a repository, or with ``/write`` change it."""
    action = request.path_params.get("action", "")
    if action not in ("", "write"):
        raise Refusal(404, f"{action!r} is no right that can be asked for: expected write.")
    repository = open_repository(request, write=bool(action))
    if action:
        require_write(request, repository.namespace)
    return JSONResponse({})


def no_such_kind(request: Request) -> Response:
    """Refuse what is asked of data sets and spaces."""
    message = "This hub holds models only, no datasets, spaces or kernels. Leave --repo-type and repo_type out."
    raise Refusal(404, message, REPO_NOT_FOUND)


def no_namespace(request: Request) -> Response:
    """Say that there is no repository of a name without a namespace."""
    raise repository_not_found(request, request.path_params.get("repository", "This address"))


def no_xet(request: Request) -> Response:
    """Refuse a client that wants to send files to a Xet store."""
    message = (
        "This hub has no Xet storage. Set HF_HUB_DISABLE_XET=1 for this client, or ask whoever runs the hub to start it with "
        "--upload-mode regular, which every client can."
    )
    raise Refusal(404, message)


def no_discussions(request: Request) -> Response:
    """Refuse what is asked of pull requests and discussions."""
    raise Refusal(404, "This hub has no pull requests or discussions. Commit to a branch instead.")


_ALL: Final = ["GET", "POST", "PUT", "DELETE", "PATCH"]
routes: Final = [
    Route("/api/validate-yaml", with_json(validate_yaml, anyone, LARGE), methods=["POST"]),
    Route(f"{MODEL}/auth-check", auth_check),
    Route(f"{MODEL}/auth-check/{{action:part}}", auth_check),
    Route(f"{MODEL}/xet-write-token/{{revision:part}}", no_xet),
    Route(f"{MODEL}/xet-read-token/{{revision:part}}", no_xet),
    Route(f"{MODEL}/discussions", no_discussions, methods=_ALL),
    Route(f"{MODEL}/discussions/{{rest:rest}}", no_discussions, methods=_ALL),
    *(
        route
        for kind in ("datasets", "spaces", "kernels")
        for route in (
            Route(f"/api/{kind}", no_such_kind, methods=_ALL),
            Route(f"/api/{kind}/{{rest:rest}}", no_such_kind, methods=_ALL),
            Route(f"/{kind}{REPOSITORY}/{{rest:rest}}", no_such_kind, methods=_ALL),
        )
    ),
]
# After all others: names without a namespace, which tools try for models that only huggingface.co has.
last: Final = [
    Route("/api/models/{repository:part}", no_namespace, methods=_ALL),
    Route("/api/models/{repository:part}/{rest:rest}", no_namespace, methods=_ALL),
    Route("/{repository:part}/resolve/{revision:part}/{path:rest}", no_namespace),
]
