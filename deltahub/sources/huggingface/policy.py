"""The rules of promotion of a hub of DeltaHub; other hubs have no such endpoint."""

from __future__ import annotations

from typing import Any

from deltahub.errors import ConfigError, NotFoundError
from deltahub.registry.promotion.policy import Policy
from deltahub.sources.huggingface.calls import Calls
from deltahub.sources.huggingface.editor import raise_refusal
from deltahub.stores.retry import HUB_TIMEOUT

_RULES = "/api/deltahub/promotion"


def read_policy(calls: Calls) -> tuple[Policy, str]:
    """Return the rules of promotion and their etag.

    Raises:
        ConfigError: the hub has no such rules.
    """
    answer = _send(calls, "GET")
    return Policy.from_dict(answer.json()), answer.headers.get("ETag", "none").strip('"')


def write_policy(calls: Calls, policy: Policy, etag: str, reason: str) -> Policy:
    """Replace the rules of promotion that have an etag.

    Raises:
        ConflictError: they changed meanwhile.
        ConfigError: they are not rules, or the hub has none.
        StorageError: the token lacks the scope admin.
    """
    body = {key: value for key, value in policy.to_dict().items() if key != "log"}
    return Policy.from_dict(_send(calls, "PUT", {"If-Match": etag}, json={**body, "reason": reason}).json())


def _send(calls: Calls, method: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
    from huggingface_hub.utils import get_session, hf_raise_for_status

    def ask() -> Any:
        url = f"{calls.endpoint}{_RULES}"
        sent = {**calls.headers(), **(headers or {})}
        answer = get_session().request(method, url, headers=sent, timeout=HUB_TIMEOUT, **body)
        raise_refusal(answer)
        hf_raise_for_status(answer)
        return answer

    try:
        return calls.make(ask, "Asking for the rules of promotion", f"the rules of promotion of {calls.name}")
    except NotFoundError as error:
        msg = f"{calls.place} has no rules of promotion: it is not a hub of DeltaHub, or an earlier one."
        raise ConfigError(msg) from error
