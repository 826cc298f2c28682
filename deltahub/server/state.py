"""What all requests of one process share."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from deltahub.registry.registry import Registry
from deltahub.server.settings import Settings


class State:
    """The registry, the settings, and what was read of the registry and can never change.

    Args:
        registry: what is served.
        settings: how.
    """

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self.registry = registry
        self.settings = settings

    def base_url(self, request: HTTPConnection) -> str:
        """How the caller reaches the hub, without a slash at the end."""
        return (self.settings.public_url or f"{request.url.scheme}://{request.url.netloc}").rstrip("/")


def state_of(request: HTTPConnection) -> State:
    """The state of the application that handles a request."""
    found = request.app.state.hub
    assert isinstance(found, State)
    return found
