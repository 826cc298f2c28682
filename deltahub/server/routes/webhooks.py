"""Endpoints that manage the webhooks of the caller."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.registry import stamps
from deltahub.server.access import Caller, require_writer
from deltahub.server.bodies import with_json
from deltahub.server.deliveries import Deliveries, deliveries
from deltahub.server.errors import NOT_SUPPORTED, Refusal
from deltahub.server.state import state_of
from deltahub.server.webhooks import DOMAINS, MOST, WATCHED, Watched, Webhook, Webhooks, new_id

_ID: Final = re.compile(r"[0-9a-f]{24}")
_MOST_WATCHED: Final = 100
_LONGEST: Final = 2000  # characters of an address, a name or a secret
_FOREIGN: Final = ("dataset", "space", "kernel", "bucket")


def _owner(request: Request) -> Caller:
    """Return the caller, who needs a token that writes.

    Raises:
        Refusal: the request came without such a token.
    """
    caller = require_writer(request)
    if caller.anonymous:
        raise Refusal(401, "Webhooks belong to a token, and none came with the request.")
    return caller


def list_webhooks(request: Request) -> Response:
    """List the webhooks of the caller."""
    return JSONResponse([_answer(webhook) for webhook in _webhooks(request).of(_owner(request).name)])


def get_webhook(request: Request) -> Response:
    """Answer with one webhook of the caller.

    Raises:
        Refusal: it does not exist.
    """
    return JSONResponse({"webhook": _answer(_found(request))})


def create_webhook(request: Request, body: dict[str, Any]) -> Response:
    """Create a webhook.

    Raises:
        Refusal: a field is invalid, or the caller has too many webhooks.
    """
    caller, webhooks = _owner(request), _webhooks(request)
    fields = _fields(body)
    if missing := {"url", "watched"} - fields.keys():
        raise Refusal(400, f"A webhook needs {' and '.join(sorted(missing))}.")
    if len(webhooks.of(caller.name)) >= MOST:
        raise Refusal(409, f"{caller.name} has {MOST} webhooks, and more are not kept. Delete one first.")
    defaults = {"domains": DOMAINS, "secret": None}
    webhook = Webhook(
        **{**defaults, **fields},
        id=new_id(),
        owner=caller.name,
        token=caller.token,
        disabled=False,
        created=stamps.now(),
    )
    return JSONResponse({"webhook": _answer(webhooks.save(webhook))})


def update_webhook(request: Request, body: dict[str, Any]) -> Response:
    """Change the fields of a webhook that the body names; an empty list of what to watch changes nothing.

    Raises:
        Refusal: it does not exist, or a field is invalid.
    """
    fields = _fields(body)
    return _changed(request, lambda webhook: replace(webhook, **fields))


def switch_webhook(request: Request) -> Response:
    """Enable or disable a webhook.

    Raises:
        Refusal: it does not exist.
    """
    action = request.path_params["action"]
    if action not in ("enable", "disable"):
        raise Refusal(404, f"{action!r} cannot be done to a webhook: expected enable or disable.")
    return _changed(request, lambda webhook: replace(webhook, disabled=action == "disable"))


def delete_webhook(request: Request) -> Response:
    """Delete a webhook of the caller.

    Raises:
        Refusal: it does not exist.
    """
    webhook = _found(request)
    _webhooks(request).delete(webhook.owner, webhook.id)
    deliveries(state_of(request).registry.store).delete(f"{webhook.owner}/{webhook.id}")
    return JSONResponse({})


def list_deliveries(request: Request) -> Response:
    """Answer with the state of the deliveries to one webhook of the caller, with the events that were given up.

    Raises:
        Refusal: it does not exist.
    """
    webhook = _found(request)
    state = deliveries(state_of(request).registry.store).find(f"{webhook.owner}/{webhook.id}") or Deliveries()
    answer = {"delivered": state.delivered, "attempts": state.attempts, "due": state.due, "dead": list(state.dead)}
    return JSONResponse(answer)


def _changed(request: Request, change: Callable[[Webhook], Webhook]) -> Response:
    caller, webhook = _owner(request), _found(request)

    def apply(current: Webhook | None) -> Webhook:
        if current is None:
            raise _missing(webhook.id)
        return replace(change(current), token=caller.token)

    return JSONResponse({"webhook": _answer(_webhooks(request).change(caller.name, webhook.id, apply))})


def _webhooks(request: Request) -> Webhooks:
    return Webhooks(state_of(request).registry.store)


def _found(request: Request) -> Webhook:
    owner, number = _owner(request).name, request.path_params["number"]
    webhook = _webhooks(request).find(owner, number) if _ID.fullmatch(number) else None
    if webhook is None:
        raise _missing(number)
    return webhook


def _missing(number: str) -> Refusal:
    return Refusal(404, f"This token has no webhook {number[:40]!r}.")


def _answer(webhook: Webhook) -> dict[str, Any]:
    values = asdict(webhook)
    return {key: values[key] for key in ("id", "url", "watched", "domains", "secret", "disabled")}


# ----- fields of a request -----


def _fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that a request sets, checked.

    Raises:
        Refusal: one is invalid, or needs a feature that this hub does not have.
    """
    if body.get("jobSourceId") or body.get("secrets"):
        raise Refusal(501, "This hub runs no jobs. Give the webhook a url instead.", NOT_SUPPORTED)
    fields: dict[str, Any] = {}
    if (url := body.get("url")) is not None:
        fields["url"] = _url(url)
    if watched := body.get("watched"):
        fields["watched"] = _watched(watched)
    if (domains := body.get("domains")) is not None:
        fields["domains"] = _domains(domains)
    if (secret := body.get("secret")) is not None:
        if not isinstance(secret, str) or len(secret) > _LONGEST:
            raise Refusal(400, f"'secret' must be a text of at most {_LONGEST:,} characters.")
        fields["secret"] = secret or None
    return fields


def _url(url: Any) -> str:
    try:
        parts = urlsplit(url) if isinstance(url, str) and len(url) <= _LONGEST else None
        valid = parts and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or not url.isascii() or " " in url:
        raise Refusal(400, "The url of a webhook must be an http or https address of at most 2,000 ASCII characters.")
    if "@" in urlsplit(url).netloc:
        raise Refusal(400, "The url of a webhook must not hold a user name or password. Use its secret.")
    return str(url)


def _watched(items: Any) -> tuple[Watched, ...]:
    if not isinstance(items, list) or len(items) > _MOST_WATCHED:
        raise Refusal(400, f"'watched' must be a list of at most {_MOST_WATCHED} entries.")
    return tuple(_watched_item(item) for item in items)


def _watched_item(item: Any) -> Watched:
    kind, name = (item.get("type"), item.get("name")) if isinstance(item, dict) else (None, None)
    if kind in _FOREIGN:
        raise Refusal(501, f"This hub holds models only, so a webhook cannot watch a {kind}.", NOT_SUPPORTED)
    if kind not in WATCHED or not isinstance(name, str) or not 0 < len(name) <= _LONGEST:
        raise Refusal(400, f"Each entry of 'watched' needs 'type', one of {', '.join(WATCHED)}, and 'name', a text.")
    return Watched(kind, name)


def _domains(domains: Any) -> tuple[str, ...]:
    if not isinstance(domains, list) or not domains or not all(domain in DOMAINS for domain in domains):
        raise Refusal(400, f"'domains' must be a list of {' and '.join(DOMAINS)}.")
    return tuple(dict.fromkeys(domains))


_WEBHOOKS: Final = "/api/settings/webhooks"
routes: Final = [
    Route(_WEBHOOKS, list_webhooks),
    Route(_WEBHOOKS, with_json(create_webhook, _owner), methods=["POST"]),
    Route(f"{_WEBHOOKS}/{{number:part}}", get_webhook),
    Route(f"{_WEBHOOKS}/{{number:part}}", with_json(update_webhook, _found), methods=["POST"]),
    Route(f"{_WEBHOOKS}/{{number:part}}", delete_webhook, methods=["DELETE"]),
    Route(f"{_WEBHOOKS}/{{number:part}}/deliveries", list_deliveries),
    Route(f"{_WEBHOOKS}/{{number:part}}/{{action:part}}", switch_webhook, methods=["POST"]),
]
