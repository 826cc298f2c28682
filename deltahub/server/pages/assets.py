"""Static files of the pages: styles, scripts and the icon."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from deltahub.server.errors import Refusal
from deltahub.server.pages.rendering import static_files

_KINDS: Final = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FOR_EVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}  # the URL depends on the content


def static_file(request: Request) -> Response:
    """Serve a static file."""
    name = request.path_params["file"]
    ending = name.rpartition(".")[2]
    if name not in static_files() or ending not in _KINDS:
        raise Refusal(404, f"The pages have no file {name!r}.")
    return Response(static_files()[name][0], headers=_FOR_EVER, media_type=_KINDS[ending])
