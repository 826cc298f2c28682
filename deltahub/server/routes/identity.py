"""The endpoint that identifies the caller."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.server.access import caller_of
from deltahub.server.errors import Refusal


def whoami(request: Request) -> Response:
    """Return the caller's name and the namespaces they may write to.

    Raises:
        Refusal: the request came without a token.
    """
    caller = caller_of(request)
    if caller.anonymous:
        raise Refusal(401, "This needs a token, and none came with the request. Log in with `hf auth login`.")
    namespaces = sorted(caller.namespaces or ())
    role = caller.scope if caller.scope in ("read", "write") else "write"
    return JSONResponse(
        {
            "type": "user",
            "id": caller.name,
            "name": caller.name,
            "fullname": caller.name,
            "isPro": False,
            "orgs": [{"type": "org", "name": name, "fullname": name, "roleInOrg": role} for name in namespaces],
            "auth": {"type": "access_token", "accessToken": {"displayName": caller.name, "role": role}},
        }
    )


routes: Final = [Route("/api/whoami-v2", whoami)]
