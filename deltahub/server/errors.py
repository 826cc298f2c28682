"""Refusals of requests and their error responses.

The client of the Hugging Face Hub distinguishes errors by the header ``X-Error-Code`` and shows ``X-Error-Message``; all other
clients read the JSON body, ``{"error": message}``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deltahub.errors import (
    CheckpointError,
    ConfigError,
    ConflictError,
    DeltaHubError,
    IntegrityError,
    InUseError,
    NotFoundError,
    ReferenceSyntaxError,
    RefusedMoveError,
    StorageError,
)
from deltahub.registry.edit_messages import error_to_dict

REPO_NOT_FOUND: Final = "RepoNotFound"
REVISION_NOT_FOUND: Final = "RevisionNotFound"
ENTRY_NOT_FOUND: Final = "EntryNotFound"
NOT_SUPPORTED: Final = "NotSupported"  # by this hub; the Hub has it
DATA_DAMAGED: Final = "DataDamaged"  # clients of DeltaHub do not ask again
_LONGEST_HEADER: Final = 500


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of the response, 400 to 599.
        message: what was expected, what was found and what to do.
        code: for ``X-Error-Code``, e.g. ``"RepoNotFound"``; None to omit it.
        headers: additional headers of the response.
        details: for the body, beside the message.
        title: what clients of the Hub show instead of the message, which they then say in their own words; None for the message.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
        title: str | None = None,
    ) -> None:
        super().__init__(status, message, code, headers, details, title)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})
        self.details, self.title = dict(details or {}), title

    def __str__(self) -> str:
        return self.message

    def answer(self) -> Response:
        """Return the error response: a JSON body, and the headers that the Hub's client reads."""
        shown = self.title or self.message
        headers = {"X-Error-Message": header_text(shown)}
        if self.code:
            headers["X-Error-Code"] = self.code
        body = {"error": shown, **({"detail": self.message} if self.title else {}), **self.details}
        return JSONResponse(body, self.status, {**headers, **self.headers})


def header_text(text: str) -> str:
    """Return text as a header value: one line of printable ASCII, which prevents header injection."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(char if char.isprintable() else " " for char in plain)[:_LONGEST_HEADER].strip()


async def answer_refusal(request: Request, refusal: Exception) -> Response:
    """Handle refusals for Starlette."""
    assert isinstance(refusal, Refusal)
    return refusal.answer()


_STATUS: Final[tuple[tuple[type[DeltaHubError], int], ...]] = (
    (NotFoundError, 404),
    (ConflictError, 412),
    (InUseError, 409),
    (RefusedMoveError, 403),
    (ReferenceSyntaxError, 400),
    (ConfigError, 400),
    (CheckpointError, 400),
)
_DAMAGED: Final = "The stored data is damaged. Ask the administrator of this hub to run `deltahub verify --repair`."
_UNAVAILABLE: Final = (
    "The hub cannot reach its storage, or it is full. Repeat in a while, or ask the administrator of this hub."
)


def answer_failure(request: Request, error: Exception) -> Response:
    """Handle registry errors for Starlette; details of the hub's disk go to the log only."""
    assert isinstance(error, DeltaHubError)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status < 500:
        return Refusal(status, str(error), details=error_to_dict(error)).answer()
    logging.getLogger("deltahub.server").error("%s", error)
    if isinstance(error, StorageError):
        return Refusal(503, _UNAVAILABLE, headers={"Retry-After": "5"}).answer()
    if isinstance(error, IntegrityError):
        return Refusal(500, _DAMAGED, DATA_DAMAGED).answer()
    return Refusal(500, "The hub failed. Its log says why.").answer()


async def answer_http(request: Request, error: Exception) -> Response:
    """Handle Starlette's HTTP errors, such as requests that match no route."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = error.detail
    if error.detail == status.phrase:
        message = f"{status.phrase}: this hub has nothing under {request.method} {request.scope['path']}."
    return Refusal(error.status_code, message, headers=dict(error.headers or {})).answer()
