"""Request bodies, and handlers that run blocking work in a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deltahub.files.atomic import CHUNK
from deltahub.files.documents import parse
from deltahub.server.budget import Reservation, reservation_in
from deltahub.server.errors import Refusal
from deltahub.server.limits import too_large
from deltahub.server.state import state_of
from deltahub.server.telemetry import note

Handler = Callable[[Request, dict[str, Any]], Response]
Allowed = Callable[[Request], object]  # raises a refusal for a caller whose body must not be read
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
SMALL: Final = 64 << 10  # bytes, for a body that names a few things
LARGE: Final = 1 << 20  # bytes, for a body that lists many
_PARSED: Final = 16  # upper bound of bytes in memory per byte of JSON
# Body fields for the audit log: the URL alone does not show which repository is created, moved or deleted.
_NOTED: Final = ("name", "organization", "fromRepo", "toRepo", "tag", "startingPoint", "visibility", "private")
_LONGEST_NOTE: Final = 200  # characters
_MOST_FIELDS: Final = 10_000  # in a form


def with_json(handler: Handler, allowed: Allowed, most: int = SMALL) -> Endpoint:
    """Return an endpoint whose handler gets the JSON object of the body and runs in a thread.

    An empty body counts as an empty object.

    Args:
        allowed: checks the caller's permissions before the body is read.
        most: maximum size of the body in bytes.
    """

    def handle(request: Request, data: bytes) -> Response:
        body = _object(data)
        note(
            request, **{key: str(body[key])[:_LONGEST_NOTE] for key in _NOTED if isinstance(body.get(key), str | bool)}
        )
        return handler(request, body)

    return _with_body(handle, allowed, most)


def with_fields(handler: Callable[[Request, dict[str, list[str]]], Response], allowed: Allowed) -> Endpoint:
    """Return an endpoint whose handler gets the fields of a form, or the lists of a JSON object, and runs in a thread.

    Args:
        allowed: checks the caller's permissions before the body is read.
    """

    def handle(request: Request, data: bytes) -> Response:
        if "json" in request.headers.get("content-type", ""):
            fields = {key: [*map(str, value)] for key, value in _object(data).items() if isinstance(value, list)}
        else:
            try:
                fields = parse_qs(data.decode(), max_num_fields=_MOST_FIELDS, errors="strict")
            except ValueError as error:
                raise Refusal(400, "The form cannot be read, or has too many fields. Ask for less at once.") from error
        return handler(request, fields)

    return _with_body(handle, allowed, LARGE)


def _with_body(handle: Callable[[Request, bytes], Response], allowed: Allowed, most: int) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        await run_in_threadpool(allowed, request)
        with reservation_in(state_of(request).bodies, request) as reservation:
            data = await _read(request, most, reservation)
            reservation.resize(len(data) * _PARSED)
            return await run_in_threadpool(handle, request, data)

    return endpoint


async def blocks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in blocks large enough to justify a thread each; an interrupted body raises instead of ending early.

    The blocks are smaller while the memory budget for requests is used up.

    Raises:
        Refusal: the client disconnected.
    """
    buffer = bytearray()
    with reservation_in(state_of(request).bodies, request) as reservation:
        try:
            async for chunk in request.stream():
                buffer += chunk
                if len(buffer) >= CHUNK or not reservation.fits(len(buffer)):
                    yield bytes(buffer)
                    buffer.clear()
                    reservation.release()
        except ClientDisconnect as error:
            raise Refusal(400, "The request ended before its body was complete.") from error
        if buffer:
            yield bytes(buffer)


async def body_of(request: Request, most: int) -> bytes:
    """Return the whole body.

    Raises:
        Refusal: it is larger than `most` bytes, the memory budget is used up, or the client disconnected.
    """
    with reservation_in(state_of(request).bodies, request) as reservation:
        return await _read(request, most, reservation)


async def _read(request: Request, most: int, reservation: Reservation) -> bytes:
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large(most)
    buffer = bytearray()
    try:
        async for chunk in request.stream():
            if len(buffer) + len(chunk) > most:
                raise too_large(most)
            reservation.resize(len(buffer) + len(chunk))
            buffer += chunk
    except ClientDisconnect as error:
        raise Refusal(400, "The request ended before its body was complete.") from error
    return bytes(buffer)


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        value = parse(body)
    except ValueError as error:
        raise Refusal(400, f"The body is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Refusal(400, "The body must be a JSON object.")
    return value


def text_field(body: dict[str, Any], name: str, default: str | None = None) -> str:
    """Return a string field of a JSON object.

    Raises:
        Refusal: it is missing without a default, or not a string.
    """
    value = body.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise Refusal(400, f"The body needs {name!r}, a text.")
    return value
