"""The rules of promotion: read by those who may write, changed by administrators."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.registry.promotion.policy import Policy, read_tagged, write_policy
from deltahub.server.access import caller_of, require_admin, require_writer
from deltahub.server.bodies import LARGE, text_field, with_json
from deltahub.server.errors import Refusal
from deltahub.server.state import state_of
from deltahub.server.telemetry import note

_NONE: Final = "none"  # the etag of rules that are not there


def read_rules(request: Request) -> Response:
    """Answer with the rules of promotion, and their etag for a change."""
    require_writer(request)
    tagged = read_tagged(state_of(request).registry.store)
    policy, etag = tagged or (Policy(), _NONE)
    return JSONResponse(policy.to_dict(), headers={"ETag": f'"{etag}"'})


def write_rules(request: Request, body: dict[str, Any]) -> Response:
    """Replace the rules of promotion, if they are those that the client has seen.

    Raises:
        Refusal: the request does not say which rules it replaces.
        ConflictError: they changed meanwhile.
        ConfigError: they are not rules.
    """
    reason = text_field(body, "reason", "")
    etag = request.headers.get("if-match", "").strip('"')
    if not etag:
        raise Refusal(428, "Send the ETag of the rules that you have seen as If-Match.")
    policy = Policy.parse({key: value for key, value in body.items() if key in ("rules", "admins")})
    note(request, promotion=f"{len(policy.rules)} rules", reason=reason[:200])
    store, actor = state_of(request).registry.store, caller_of(request).actor
    return JSONResponse(write_policy(store, policy, actor, reason, expect=etag).to_dict())


_RULES: Final = "/api/deltahub/promotion"
routes: Final = [
    Route(_RULES, read_rules),
    Route(_RULES, with_json(write_rules, require_admin, LARGE), methods=["PUT"]),
]
