"""Amending the metadata of a version after its push, for DeltaHub clients; the Hugging Face Hub has no such endpoint."""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from deltahub.registry.amend import Amendment, amend
from deltahub.server.bodies import LARGE, text_field, with_json
from deltahub.server.errors import REVISION_NOT_FOUND, Refusal
from deltahub.server.repositories import may_change, open_repository
from deltahub.server.telemetry import note


def amend_version(request: Request, body: dict[str, Any]) -> Response:
    """Change message, metrics, description or card of a version, and answer with the new metadata.

    Raises:
        Refusal: there is no such version, or the request names no field that can be changed.
    """
    repository = open_repository(request, write=True)
    version = repository.find(request.path_params["revision"])
    if version is None:
        raise Refusal(404, f"{repository.path} has no version yet. Push one first.", REVISION_NOT_FOUND)
    amendment = amendment_in(body)
    document, version = amend(repository.registry(request), repository.path, version, amendment)
    note(request, version=version, amended=", ".join(sorted(body)))
    return JSONResponse({"version": version, "entry": document.versions[version].to_dict()})


def amendment_in(body: dict[str, Any]) -> Amendment:
    """Return the amendment in the body of a request.

    Raises:
        Refusal: it names no field that can be changed, or a metric that is not a number.
    """
    texts = {key: text_field(body, key) for key in ("message", "description", "card") if body.get(key) is not None}
    metrics = body.get("metrics", {})
    values = metrics.values() if isinstance(metrics, dict) else ["not an object"]
    if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in values):
        raise Refusal(400, "'metrics' must be an object of names and numbers, or null to remove one.")
    if not (texts or metrics):
        raise Refusal(400, "Nothing to change: expected message, metrics, description or card.")
    return Amendment(metrics=metrics, **texts)


routes: Final = [
    Route(
        "/api/deltahub/{namespace:part}/{name:part}/amend/{revision:part}",
        with_json(amend_version, may_change, LARGE),
        methods=["POST"],
    ),
]
