"""The versions page of a delta: existing and removed versions, aliases, and the log of changes."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from deltahub.registry.entries import number
from deltahub.server.pages.lookups import repository_of
from deltahub.server.pages.rendering import page

_SHOWN: Final = 100  # versions and log entries by default
_MOST: Final = 5000  # with ``?all``


def versions(request: Request) -> Response:
    """Show the history of a delta, newest first."""
    repository = repository_of(request)
    document = repository.document
    everything = "all" in request.query_params
    names = sorted({*document.versions, *document.removed}, key=number, reverse=True)
    moves = list(reversed(document.log))
    shown = _MOST if everything else _SHOWN
    newest = names[:shown]
    there = [name for name in names if name in document.versions]
    return page(
        request,
        "versions.html",
        document=document,
        private=repository.private,
        names=newest,
        more=len(names) - len(newest),
        moves=moves[:shown],
        more_moves=len(moves) - len(moves[:shown]),
        there=there,
        before=there[min(1, len(there) - 1)],
    )
