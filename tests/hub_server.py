"""A hub that runs in a thread of this process, on a port of its own, for the clients under test."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from deltahub.registry.registry import Registry
from deltahub.server.access import Scope
from deltahub.server.app import build_app
from deltahub.server.settings import Settings
from deltahub.server.tokens import Tokens
from tests.server.running import listening

_numbers = itertools.count(1)


@dataclass(frozen=True)
class HubServer:
    """A hub that runs.

    Attributes:
        url: where it answers, ``"http://127.0.0.1:..."``; what HF_ENDPOINT takes.
        registry: what it serves.
        settings: how it is run.
    """

    url: str
    registry: Registry
    settings: Settings

    def token(self, scope: Scope = "write", *namespaces: str, name: str | None = None) -> str:
        """A new token's secret.

        Args:
            namespaces: where it may be used; none for everywhere.
        """
        return Tokens(self.registry.store).create(name or f"tester-{next(_numbers)}", scope, namespaces)[1]


@contextlib.contextmanager
def hub_server(registry: Registry, settings: Settings | None = None) -> Iterator[HubServer]:
    """Serve a registry until the block ends. Several may serve the same one."""
    settings = settings or Settings()
    with listening(build_app(registry, settings)) as (host, port):
        yield HubServer(f"http://{host}:{port}", registry, settings)
