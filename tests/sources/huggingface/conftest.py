"""A hub on this machine, a proxy that breaks the way to it, and a user of both."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest

from deltahub.cache.cache import Cache
from deltahub.cache.remembered import CachedNames
from deltahub.hub.hub import Hub
from deltahub.registry.registry import Registry
from deltahub.sources.huggingface import HuggingFace
from deltahub.stores.memory import MemoryStore
from tests.hub_server import HubServer, hub_server
from tests.s3_proxy import Proxy, proxied
from tests.sources.huggingface.plain_hub import PlainHub, plain_hub

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let huggingface_hub ask servers, which is read once when it is imported; it has no connection left over afterwards."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    huggingface_hub.close_session()


@pytest.fixture(scope="session")
def shared_plain_hub() -> Iterator[PlainHub]:
    """One for all tests: each has a repo of its own."""
    with plain_hub() as running:
        yield running


@pytest.fixture(params=["plain"])
def server(request: pytest.FixtureRequest) -> Iterator[HubServer | PlainHub]:
    """A hub: one that knows nothing of deltas, or one of our own, where a test asks for it."""
    if request.param == "plain":
        yield request.getfixturevalue("shared_plain_hub")
        return
    with hub_server(Registry(MemoryStore(), "served")) as running:
        yield running


@pytest.fixture
def proxy(server: HubServer | PlainHub) -> Iterator[Proxy]:
    """The way to the hub."""
    with proxied(server.url) as way:
        yield way


@pytest.fixture
def pauses() -> list[float]:
    """The seconds that were waited."""
    return []


@pytest.fixture
def token(server: HubServer | PlainHub) -> str:
    """One that may write everywhere."""
    return server.token("write")


@pytest.fixture
def user(proxy: Proxy, token: str, pauses: list[float], tmp_path: Path) -> Callable[..., Hub]:
    """A new user of the hub with an empty cache, whose token may write."""

    def make(**options: object) -> Hub:
        cache = Cache(tmp_path / f"user-{next(_numbers)}")
        lookup = CachedNames(cache).lookup
        arguments = {"endpoint": proxy.url, "token": token, "lookup": lookup, "pause": pauses.append, **options}
        hf = HuggingFace("hf", **arguments)  # type: ignore[arg-type]
        return Hub({"local": Registry(MemoryStore(), "local"), "hf": hf}, cache)

    return make


@pytest.fixture
def hub(user: Callable[..., Hub]) -> Hub:
    """One user."""
    return user()


@pytest.fixture
def repo() -> str:
    """A name that nobody has."""
    return f"acme/ner-{uuid.uuid4().hex[:12]}"
