"""Paths of requests, matched as they were sent.

Clients quote a revision or a file name as one segment: ``exp/lora`` arrives as ``exp%2Flora``. So routes are matched before
anything is unquoted, and each parameter is unquoted by itself.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send

from deltahub.server.refusals import Refusal

# Where the routes of a repository are; whoever builds them imports this module, and so knows the parameters' kinds.
REPOSITORY: Final = "/{namespace:part}/{name:part}"
MODEL: Final = f"/api/models{REPOSITORY}"
_LONGEST: Final = 4096  # of one parameter


def _unquoted(value: str) -> str:
    """A parameter as it was meant.

    Raises:
        Refusal: it is no text, or holds what no name does.
    """
    try:
        text = unquote(value, errors="strict")
    except UnicodeDecodeError as error:
        raise Refusal(400, "The address holds bytes that are no UTF-8. Quote the name as UTF-8.") from error
    if len(text) > _LONGEST or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise Refusal(400, "A name in the address is too long or holds control characters. Check it.")
    return text


class _Part(Convertor[str]):
    """One segment, in which a quoted slash stays part of the name."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return _unquoted(value)

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


class _Rest(Convertor[str]):
    """All that is left, such as the path of a file."""

    regex = ".*"

    def convert(self, value: str) -> str:
        return _unquoted(value)

    def to_string(self, value: str) -> str:
        return quote(value, safe="/")


def register() -> None:
    """Let routes have parameters ``{name:part}`` and ``{path:rest}``."""
    register_url_convertor("part", _Part())
    register_url_convertor("rest", _Rest())


register()


class AsSent:
    """Middleware that lets routes see a request's path as it was sent.

    Args:
        app: what handles the requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its path still quoted."""
        if scope["type"] == "http" and scope.get("raw_path"):
            scope = {**scope, "path": scope["raw_path"].partition(b"?")[0].decode("ascii", "replace")}
        await self.app(scope, receive, send)
