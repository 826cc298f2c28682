"""Refusals of requests and their error responses.

The client of the Hugging Face Hub distinguishes errors by the header ``X-Error-Code`` and shows ``X-Error-Message``; all other
clients read the JSON body, ``{"error": message}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

REPO_NOT_FOUND: Final = "RepoNotFound"
REVISION_NOT_FOUND: Final = "RevisionNotFound"
ENTRY_NOT_FOUND: Final = "EntryNotFound"
_LONGEST_HEADER: Final = 500


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of the response, 400 to 599.
        message: what was expected, what was found and what to do.
        code: for ``X-Error-Code``, e.g. ``"RepoNotFound"``; None to omit it.
        headers: additional headers of the response.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, code, headers)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})

    def __str__(self) -> str:
        return self.message

    def answer(self) -> Response:
        """Return the error response: a JSON body, and the headers that the Hub's client reads."""
        headers = {"X-Error-Message": header_text(self.message)}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message}, self.status, {**headers, **self.headers})


def header_text(text: str) -> str:
    """Return text as a header value: one line of printable ASCII, which prevents header injection."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(char if char.isprintable() else " " for char in plain)[:_LONGEST_HEADER].strip()


async def answer_refusal(request: Request, refusal: Exception) -> Response:
    """Handle refusals for Starlette."""
    assert isinstance(refusal, Refusal)
    return refusal.answer()
