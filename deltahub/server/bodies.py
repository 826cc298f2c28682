"""Bodies of requests, and handing work that waits for a disk or a server to a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deltahub.files import CHUNK
from deltahub.schema import parse
from deltahub.server.observing import note
from deltahub.server.refusals import Refusal

Handler = Callable[[Request, dict[str, Any]], Response]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]
# What the audit log should know of a body: an address alone does not say which repository is created, moved or deleted.
_NOTED: Final = ("name", "organization", "fromRepo", "toRepo", "tag", "startingPoint", "visibility", "private")
_LONGEST_NOTE: Final = 200  # characters
_MOST_FIELDS: Final = 10_000  # of a form


def with_json(handler: Handler) -> Endpoint:
    """An endpoint whose handler gets the JSON object of the body, and runs in a thread; no body is an empty object."""

    async def endpoint(request: Request) -> Response:
        body = _object(await _body(request))
        note(request, **{key: str(body[key])[:_LONGEST_NOTE] for key in _NOTED if key in body})
        return await run_in_threadpool(handler, request, body)

    return endpoint


def with_fields(handler: Callable[[Request, dict[str, list[str]]], Response]) -> Endpoint:
    """An endpoint whose handler gets the fields of a form, or the lists of a JSON object, and runs in a thread."""

    async def endpoint(request: Request) -> Response:
        body = await _body(request)
        if "json" in request.headers.get("content-type", ""):
            found = {key: [*map(str, value)] for key, value in _object(body).items() if isinstance(value, list)}
        else:
            try:
                found = parse_qs(body.decode(), max_num_fields=_MOST_FIELDS, errors="strict")
            except ValueError as error:
                raise Refusal(400, "The form cannot be read, or has too many fields. Ask for less at once.") from error
        return await run_in_threadpool(handler, request, found)

    return endpoint


async def blocks(request: Request) -> AsyncIterator[bytes]:
    """The body in blocks that are worth a thread's while; the end of an interrupted one is never taken for its end.

    Raises:
        Refusal: the client went away.
    """
    held = bytearray()
    try:
        async for chunk in request.stream():
            held += chunk
            if len(held) >= CHUNK:
                yield bytes(held)
                held.clear()
    except ClientDisconnect as error:
        raise Refusal(400, "The request ended before its body was complete.") from error
    if held:
        yield bytes(held)


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect as error:
        raise Refusal(400, "The request ended before its body was complete.") from error


def _object(body: bytes) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        found = parse(body)
    except ValueError as error:
        raise Refusal(400, f"The body is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise Refusal(400, "The body must be a JSON object.")
    return found


def text_field(body: dict[str, Any], name: str, default: str | None = None) -> str:
    """A text of a JSON object.

    Raises:
        Refusal: it is missing and has no default, or is no text.
    """
    value = body.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise Refusal(400, f"The body needs {name!r}, a text.")
    return value
