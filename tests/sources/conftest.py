"""A web server, and sources that ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames
from deltahub.hub.pull import bring
from deltahub.link import Link
from deltahub.sources.base import Resolved
from deltahub.sources.web.client import Limits
from deltahub.sources.web.source import WebSource
from tests.sources.web_server import Site, serving


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A web server of an empty folder."""
    root = tmp_path / "site"
    root.mkdir()
    with serving(root) as served:
        yield served


class Web:
    """Links, and a cache that they are pulled into.

    Attributes:
        pauses: how long was waited each time, in seconds.
    """

    def __init__(self, root: Path) -> None:
        self.cache = Cache(root)
        self.names = CachedNames(self.cache)
        self.pauses: list[float] = []

    def source(self, link: Link, limits: Limits | None = None) -> WebSource:
        return WebSource(link, self.cache, self.names, limits or Limits(connect=5, answer=5), self.pauses.append)

    def resolve(self, link: Link, limits: Limits | None = None) -> Resolved:
        return self.source(link, limits).resolve(link)

    def pull(self, url: str, limits: Limits | None = None) -> Path:
        return bring(self.resolve(Link.parse(url), limits), self.cache).folder


@pytest.fixture
def web(tmp_path: Path) -> Web:
    """Links, with an empty cache."""
    return Web(tmp_path / "web-cache")


@pytest.fixture
def published(site: Site, new_checkpoint: Callable[..., Path]) -> Callable[..., str]:
    """Puts a delta into a folder of the site and gives its address."""

    def publish(name: str = "ner", **content: object) -> str:
        new_checkpoint(**content).rename(site.root / name)
        return f"{site.url}/{name}"

    return publish
