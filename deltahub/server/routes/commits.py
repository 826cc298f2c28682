"""The commit endpoint: operations become one version, or nothing happens; `changes.py` creates the version."""

from __future__ import annotations

from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.files.atomic import scratch
from deltahub.server.bodies import blocks
from deltahub.server.budget import reservation_in
from deltahub.server.errors import NOT_SUPPORTED, REVISION_NOT_FOUND, Refusal
from deltahub.server.paths import MODEL
from deltahub.server.repositories import Repository, open_repository
from deltahub.server.routes.changes import Change, HeadMoved
from deltahub.server.routes.operations import Operations, Parser
from deltahub.server.state import state_of
from deltahub.server.telemetry import note
from deltahub.stores.retry import SwapRetry

_HEADS: Final = "refs/heads/"


async def commit(request: Request) -> Response:
    """Receive a commit and create a version from it.

    Raises:
        Refusal: it is malformed, names files that were not uploaded, or its parent is not the branch head.
    """
    await run_in_threadpool(_require_branch, request)
    with scratch() as folder, reservation_in(state_of(request).bodies, request) as reservation:
        parser = Parser(folder, state_of(request).settings.max_file)
        try:
            async for block in blocks(request):
                await run_in_threadpool(parser.feed, block)
                reservation.resize(parser.bytes_in_use)
            operations = await run_in_threadpool(parser.finish)
        finally:
            parser.close()
        name = f"{request.path_params['namespace']}/{request.path_params['name']}"
        async with state_of(request).repository_locks.of(name):
            return await run_in_threadpool(_commit, request, operations)


def _require_branch(request: Request) -> tuple[Repository, str]:
    """Return the repository and branch that a commit goes to.

    Raises:
        Refusal: it does not exist, or the caller may not change it.
    """
    repository = open_repository(request, write=True)
    if request.query_params.get("create_pr"):
        raise Refusal(501, "This hub has no pull requests. Create a branch and commit to it.", NOT_SUPPORTED)
    branch = request.path_params["revision"].removeprefix(_HEADS)
    if branch not in repository.branches():
        message = f"{repository.path} has no branch {branch!r} to commit to. Create it first."
        raise Refusal(404, message, REVISION_NOT_FOUND)
    return repository, branch


def _commit(request: Request, operations: Operations) -> Response:
    retry = SwapRetry(HeadMoved)
    while True:
        repository, branch = _require_branch(request)
        with retry:
            commit_oid = Change(request, repository, branch, operations).make()
            break
    note(request, commit=commit_oid, branch=branch)
    url = f"{repository.state.base_url(request)}/{repository.path}/commit/{commit_oid}"
    return JSONResponse({"success": True, "commitOid": commit_oid, "commitUrl": url, "hookOutput": ""})


routes: Final = [
    Route(f"{MODEL}/commit/{{revision:part}}", commit, methods=["POST"]),
]
