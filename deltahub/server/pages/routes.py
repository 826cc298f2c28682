"""URLs of the pages.

They equal those of the Hugging Face Hub for corresponding pages, so that links printed by its clients work. Other pages are below
``/-/``, which is not a valid namespace.

Styles, scripts and the icon are static files.
"""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from deltahub.server.errors import Refusal
from deltahub.server.pages.comparison import comparison
from deltahub.server.pages.delta import commit, delta, versions
from deltahub.server.pages.file import file
from deltahub.server.pages.front import front
from deltahub.server.pages.layers import layers, one_at_a_time
from deltahub.server.pages.rendering import static_files
from deltahub.server.pages.sign_in import choose_theme, sign_in, sign_in_form, sign_out
from deltahub.server.paths import register

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
        raise Refusal(404, f"File {name!r} not found.")
    return Response(static_files()[name][0], headers=_FOR_EVER, media_type=_KINDS[ending])


register()
_DELTA: Final = "/{namespace:part}/{name:part}"

routes: Final[list[BaseRoute]] = [
    Route("/", front),
    Route("/-/static/{file:part}", static_file),
    Route("/-/compare", one_at_a_time(comparison)),
    Route("/-/sign-in", sign_in_form, methods=["GET"]),
    Route("/-/sign-in", sign_in, methods=["POST"]),
    Route("/-/sign-out", sign_out, methods=["POST"]),
    Route("/-/theme", choose_theme, methods=["POST"]),
    Route(f"{_DELTA}/tree/{{revision:part}}", delta),
    Route(f"{_DELTA}/commit/{{revision:part}}", commit),
    Route(f"{_DELTA}/blob/{{revision:part}}/{{path:rest}}", file),
    Route(f"{_DELTA}/layers/{{revision:part}}", one_at_a_time(layers)),
    Route(f"{_DELTA}/versions", versions),
    Route(_DELTA, delta),
]
