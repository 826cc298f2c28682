"""Endpoints for access to gated repositories: asking, granting, accepting, rejecting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.registry import stamps
from deltahub.server import paging
from deltahub.server.access import caller_of
from deltahub.server.bodies import text_field, with_json
from deltahub.server.errors import Refusal
from deltahub.server.gating import STATUSES, AccessRequest, AccessRequests, RequestList, new_request
from deltahub.server.paths import MODEL, REPOSITORY
from deltahub.server.repositories import Repository, may_change, open_repository
from deltahub.server.routes.trees import moment
from deltahub.server.telemetry import note
from deltahub.server.tokens import Tokens

_LONGEST: Final = 1000  # characters of a reason


def list_requests(request: Request) -> Response:
    """List the requests with a status, for those who may write to the repository."""
    repository = _gated(request)
    status = request.path_params["status"]
    if status not in STATUSES:
        raise Refusal(404, f"{status[:40]!r} is not a status of a request: expected {', '.join(STATUSES)}.")
    lines = [_line(item) for item in _requests(repository).of(repository).requests if item.status == status]
    start, count = paging.window(request)
    return paging.page(request, lines[start : start + count], start=start, count=count, total=len(lines))


def ask(request: Request) -> Response:
    """Ask for access to a gated repository, in the name of the caller's token.

    Raises:
        Refusal: the repository is not gated, or the request came without a token.
    """
    repository, caller = open_repository(request), caller_of(request)
    if caller.anonymous:
        raise Refusal(401, "Access is given to the name of a token, and none came with the request.")
    if not repository.gated:
        raise Refusal(400, f"{repository.path} is not gated: its files are there for everyone who sees it.")
    made = new_request(caller.name, "accepted" if repository.gated == "auto" else "pending")

    def change(requests: RequestList) -> RequestList:
        return requests if requests.of(caller.name) else requests.with_request(made)

    own = _requests(repository).change(repository, change).of(caller.name)
    assert own
    return JSONResponse({"status": own.status})


def grant(request: Request, body: dict[str, Any]) -> Response:
    """Give a user access who did not ask, or was not accepted yet.

    Raises:
        Refusal: there is no such user, or they have access already.
    """
    repository = _gated(request)
    user = text_field(body, "user")
    if not any(token.name == user for token in Tokens(repository.state.registry.store).all()):
        raise Refusal(404, f"This hub has no token called {user[:100]!r}.")

    def change(requests: RequestList) -> RequestList:
        own = requests.of(user)
        if own and own.status == "accepted":
            raise Refusal(409, f"{user} has access to {repository.path} already.")
        return requests.with_request(replace(own or new_request(user, "accepted"), status="accepted", reason=None))

    _requests(repository).change(repository, change)
    note(request, granted=user)
    return JSONResponse({})


def handle(request: Request, body: dict[str, Any]) -> Response:
    """Accept or reject a request, or make it pending again.

    Raises:
        Refusal: there is no such request, or it has this status already.
    """
    repository = _gated(request)
    status = text_field(body, "status")
    user, number = text_field(body, "user", ""), text_field(body, "requestId", "")
    reason = text_field(body, "rejectionReason", "")[:_LONGEST] or None
    if status not in STATUSES or bool(user) == bool(number):
        raise Refusal(400, f"Expected 'status', one of {', '.join(STATUSES)}, and either 'user' or 'requestId'.")

    def change(requests: RequestList) -> RequestList:
        item = next((item for item in requests.requests if number == item.id or user == item.user), None)
        if item is None:
            raise Refusal(404, f"{repository.path} has no request of {(user or number)[:100]!r}.")
        if item.status == status:
            raise Refusal(409, f"The request of {item.user} is {status} already.")
        return requests.with_request(replace(item, status=status, time=stamps.now(), reason=reason))

    _requests(repository).change(repository, change)
    note(request, requested_by=user or number, status_of_request=status)
    return JSONResponse({})


def _gated(request: Request) -> Repository:
    repository = open_repository(request, write=True)
    if not repository.gated:
        message = f"{repository.path} is not gated. Set gated to 'auto' or 'manual' in its settings first."
        raise Refusal(400, message)
    return repository


def _requests(repository: Repository) -> AccessRequests:
    return AccessRequests(repository.state.registry.store)


def _line(item: AccessRequest) -> dict[str, Any]:
    return {
        "requestId": item.id,
        "user": {"user": item.user, "fullname": item.user},
        "status": item.status,
        "timestamp": moment(item.time),
    }


_ACCESS: Final = f"{MODEL}/user-access-request"
routes: Final = [
    Route(f"{_ACCESS}/handle", with_json(handle, may_change), methods=["POST"]),
    Route(f"{_ACCESS}/grant", with_json(grant, may_change), methods=["POST"]),
    Route(f"{_ACCESS}/{{status:part}}", list_requests),
    Route(f"{REPOSITORY}/ask-access", ask, methods=["POST"]),
]
