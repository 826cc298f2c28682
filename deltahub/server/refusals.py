"""Requests that are refused, and the answers that say so.

The client of the Hugging Face Hub tells errors apart by the header ``X-Error-Code`` and shows ``X-Error-Message``; everybody else reads
the JSON body, ``{"error": message}``.
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
        status: of the answer, 400 to 599.
        message: what was expected, what was found and what to do.
        code: for ``X-Error-Code``, e.g. ``"RepoNotFound"``; None for none.
        headers: more headers of the answer.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, message, code, headers)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})

    def __str__(self) -> str:
        return self.message

    def answer(self) -> Response:
        """The refusal as an answer: a JSON body, and the headers that the Hub's client reads."""
        headers = {"X-Error-Message": header_text(self.message)}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message}, self.status, {**headers, **self.headers})


def header_text(text: str) -> str:
    """Text as the value of a header: one line of printable ASCII, so that no name in it can add a header."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(char if char.isprintable() else " " for char in plain)[:_LONGEST_HEADER].strip()


async def answer_refusal(request: Request, refusal: Exception) -> Response:
    """Starlette's exception handler for refusals."""
    assert isinstance(refusal, Refusal)
    return refusal.answer()
