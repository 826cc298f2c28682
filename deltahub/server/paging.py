"""Long lists, page by page: each answer names the address of the next page in its header ``Link``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.requests import Request
from starlette.responses import Response

from deltahub.server.counted import WholeJSONResponse
from deltahub.server.refusals import Refusal
from deltahub.server.state import state_of

PAGE = 1000  # entries of a page


def window(request: Request, most: int | None = None) -> tuple[int, int]:
    """Which entries of a list are asked for: how many to leave out, and how many to answer at most.

    Args:
        most: entries of a page, by default `PAGE`.

    Raises:
        Refusal: the query says no number.
    """
    most = most or PAGE
    return number(request, "cursor", 0), min(number(request, "limit", most), most)


def number(request: Request, name: str, default: int) -> int:
    """A number of the query.

    Raises:
        Refusal: it is none, or negative.
    """
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refusal(400, f"{name} must be a number, got {text[:40]!r}.")
    return int(text)


def page(request: Request, entries: Sequence[Any], *, start: int, count: int, total: int) -> Response:
    """One page of a list as an answer.

    Args:
        entries: those of this page.
        start: how many come before them.
        count: how many were asked for.
        total: how many there are on all pages.
    """
    following = start + count
    if following >= total or not count:
        return WholeJSONResponse(entries)
    query = [(key, value) for key, value in parse_qsl(request.url.query, keep_blank_values=True) if key != "cursor"]
    path = request.scope["path"]  # as it was sent, so still quoted
    url = f"{state_of(request).base_url(request)}{path}?{urlencode([*query, ('cursor', str(following))])}"
    return WholeJSONResponse(entries, headers={"Link": f'<{url}>; rel="next"'})
