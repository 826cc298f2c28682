"""A hub whose pages are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from deltahub.checkpoint.checkpoint import describe
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.server.app import build_app
from deltahub.server.records import Record, Records
from deltahub.server.settings import Settings
from deltahub.server.tokens import Tokens
from tests.server.pages.deltas import save_delta
from tests.server.running import listening


class Pages:
    """The pages of a hub as a browser asks for them.

    Args:
        url: of the hub.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = requests.Session()
        self.session.headers["Accept"] = "text/html,application/xhtml+xml,*/*;q=0.8"

    def get(self, path: str, **options: Any) -> requests.Response:
        """A page."""
        return self.session.get(self.url + path, timeout=60, **options)

    def post(self, path: str, origin: str | None = None, **fields: str) -> requests.Response:
        """Send a form, as from the hub's own page unless another origin is given; redirects are not followed."""
        headers = {"Origin": self.url if origin is None else origin}
        return self.session.post(self.url + path, data=fields, headers=headers, allow_redirects=False, timeout=60)


@dataclass
class Hub:
    """A hub under test."""

    registry: Registry
    pages: Pages
    tokens: Tokens

    def token(self, scope: str = "read", *namespaces: str) -> str:
        """The secret of a new token."""
        return self.tokens.create(f"{scope}-{len(self.tokens.all())}", scope, namespaces)[1]

    def hide(self, name: str) -> None:
        """Make a repository private."""
        Records(self.registry.store).change(name, lambda _: Record("2026-01-01T00:00:00Z", "ada", private=True))


@pytest.fixture
def push(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Push a delta; gives its version."""
    count = 0

    def pushed(
        name: str, *, author: str = "ada", message: str = "", tags: Any = (), aliases: Any = (), **content: Any
    ) -> str:
        nonlocal count
        count += 1
        monkeypatch.setenv("DELTAHUB_AUTHOR", author)
        folder = save_delta(tmp_path / f"pushed-{count}", **content)
        manifest = describe(folder)
        return publish(
            registry, Publication(Reference.parse(name), manifest, folder, tags=tags, aliases=aliases, message=message)
        ).version

    return pushed


@pytest.fixture
def hub(registry: Registry) -> Iterator[Hub]:
    """A hub over `registry` that answers on a port of this machine."""
    with listening(build_app(registry, Settings(rate=0))) as (host, port):
        yield Hub(registry, Pages(f"http://{host}:{port}"), Tokens(registry.store))


@pytest.fixture
def pages(hub: Hub) -> Pages:
    """Its pages."""
    return hub.pages
