"""Pagination: each response gives the URL of the next page in its header ``Link``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response

from deltahub.server.counted_responses import WholeJSONResponse
from deltahub.server.errors import Refusal
from deltahub.server.state import state_of

PAGE = 1000  # entries per page


def window(request: Request, most: int | None = None) -> tuple[int, int]:
    """Return the requested window of a list: the number of entries to skip, and the maximum number to return.

    Args:
        most: entries per page, by default `PAGE`.

    Raises:
        Refusal: a query parameter is not a number.
    """
    most = most or PAGE
    return number(request, "cursor", 0), min(number(request, "limit", most), most)


def number(request: Request, name: str, default: int) -> int:
    """Return a number from the query.

    Raises:
        Refusal: it is not a number, or negative.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refusal(400, f"{name} must be a number, got {text[:40]!r}.")
    return int(text)


def page(request: Request, entries: Sequence[Any], *, start: int, count: int, total: int) -> Response:
    """Return one page of a list as a response.

    Args:
        entries: of this page.
        start: number of entries before them.
        count: number of entries requested.
        total: number of entries on all pages.
    """
    following = start + count
    if following >= total or not count:
        return WholeJSONResponse(entries)
    query = [(key, value) for key, value in parse_qsl(request.url.query, keep_blank_values=True) if key != "cursor"]
    path = request.scope["path"]  # as sent, so still quoted
    url = f"{state_of(request).base_url(request)}{path}?{urlencode([*query, ('cursor', str(following))])}"
    return WholeJSONResponse(entries, headers={"Link": f'<{url}>; rel="next"'})
