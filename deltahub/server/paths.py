"""Request paths, matched as sent.

Clients quote a revision or file name as one segment: ``exp/lora`` arrives as ``exp%2Flora``. So routes are matched before
unquoting, and each parameter is unquoted separately.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

from deltahub.server.errors import Refusal

# Route prefixes of a repository; modules that use them import this one, which registers the parameter types.
REPOSITORY: Final = "/{namespace:part}/{name:part}"
MODEL: Final = f"/api/models{REPOSITORY}"
_LONGEST: Final = 4096  # characters of a parameter


def _unquoted(value: str) -> str:
    """Return a path parameter unquoted.

    Raises:
        Refusal: it is not UTF-8, too long, or contains control characters.
    """
    try:
        text = unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise Refusal(400, "The address holds bytes that are not UTF-8. Quote the name as UTF-8.") from error
    if len(text) > _LONGEST or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise Refusal(400, "A name in the address is too long or holds control characters. Check it.")
    return text


class _Part(Convertor[str]):
    """Path converter for one segment; a quoted slash stays part of the name."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return _unquoted(value)

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


class _Rest(Convertor[str]):
    """Path converter for the rest of a path, such as the path of a file."""

    regex = ".*"

    def convert(self, value: str) -> str:
        return _unquoted(value)

    def to_string(self, value: str) -> str:
        return quote(value, safe="/")


def register() -> None:
    """Register the parameter types ``{name:part}`` and ``{path:rest}``."""
    register_url_convertor("part", _Part())
    register_url_convertor("rest", _Rest())


register()


class RawPaths:
    """Middleware that routes requests by their path as sent.

    Args:
        app: the application that handles the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its path still quoted."""
        if scope["type"] == "http" and scope.get("raw_path"):
            scope = {**scope, "path": scope["raw_path"].partition(b"?")[0].decode("ascii", "replace")}
        await self.app(scope, receive, send)
