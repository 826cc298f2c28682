"""Responses whose bytes count towards the memory budget until they are sent, however slowly the client reads."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from deltahub.server.budget import reservation_in
from deltahub.server.state import state_of


class WholeResponse(Response):
    """A response that finishes when the client has read it, not when it is in the connection's buffer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; the server accepts the last, empty message only when its buffer has room."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class WholeJSONResponse(WholeResponse, JSONResponse):
    """A `WholeResponse` with JSON content."""


def counted(request: Request, size: int, make: Callable[[], Response]) -> Response:
    """Return a response whose bytes count towards the memory budget for answers while it is sent.

    Args:
        size: bytes that it holds.
        make: creates it once the bytes are reserved.

    Raises:
        Refusal: the budget has too little left.
    """
    reservation = reservation_in(state_of(request).answers, request)
    reservation.resize(size)
    try:
        answer = make()
    except BaseException:
        reservation.release()
        raise
    weakref.finalize(answer, reservation.release)
    return answer
