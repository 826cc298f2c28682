"""Answers whose bytes count as held until they are on their way, however slowly they are read."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from deltahub.server.budget import room_in
from deltahub.server.state import state_of


class WholeResponse(Response):
    """An answer that is done when its reader has taken it, not when it waits in the connection's buffer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; the server takes its last message, which is empty, when there is room for it in the buffer."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class WholeJSONResponse(WholeResponse, JSONResponse):
    """The same, of JSON."""


def counted(request: Request, size: int, make: Callable[[], Response]) -> Response:
    """An answer whose bytes are taken from the hub's memory for answers for as long as it is being sent.

    Args:
        size: bytes that it holds.
        make: makes it, once there is room.

    Raises:
        Refusal: there is no room now.
    """
    room = room_in(state_of(request).answers, request)
    room.resize(size)
    try:
        answer = make()
    except BaseException:
        room.release()
        raise
    weakref.finalize(answer, room.release)
    return answer
