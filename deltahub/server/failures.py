"""Mapping of registry errors to HTTP status codes."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from deltahub.errors import (
    CheckpointError,
    ConfigError,
    ConflictError,
    DeltaHubError,
    IntegrityError,
    InUseError,
    NotFoundError,
    ReferenceSyntaxError,
    StorageError,
)
from deltahub.server.errors import Refusal

_STATUS: Final[tuple[tuple[type[DeltaHubError], int], ...]] = (
    (NotFoundError, 404),
    (ConflictError, 412),
    (InUseError, 409),
    (ReferenceSyntaxError, 400),
    (ConfigError, 400),
    (CheckpointError, 400),
)
_DAMAGED: Final = "What is stored here is damaged. Ask whoever runs this hub to run `deltahub verify --repair`."
_UNAVAILABLE: Final = (
    "The hub cannot reach its storage, or it is full. Repeat in a while, or ask whoever runs this hub."
)


def answer_failure(request: Request, error: Exception) -> Response:
    """Handle registry errors for Starlette; details of the hub's disk go to the log only."""
    assert isinstance(error, DeltaHubError)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status < 500:
        return Refusal(status, str(error)).answer()
    logging.getLogger("deltahub.server").error("%s", error)
    if isinstance(error, StorageError):
        return Refusal(503, _UNAVAILABLE, headers={"Retry-After": "5"}).answer()
    if isinstance(error, IntegrityError):
        return Refusal(500, _DAMAGED).answer()
    return Refusal(500, "The hub failed. Its log says why.").answer()


async def answer_http(request: Request, error: Exception) -> Response:
    """Handle Starlette's HTTP errors, such as requests that match no route."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = error.detail
    if error.detail == status.phrase:
        message = f"{status.phrase}: this hub has nothing under {request.method} {request.scope['path']}."
    return Refusal(error.status_code, message, headers=dict(error.headers or {})).answer()
