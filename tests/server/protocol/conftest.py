"""The clients of the Hugging Face Hub as they are, and hubs for them to talk to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi

from deltahub.registry.registry import Registry
from deltahub.server.routes import downloads, lfs
from deltahub.server.settings import Settings
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from tests.hub_server import HubServer, hub_server
from tests.s3_servers import QUICK

# How clients send files, and where the hub keeps them; with `direct` they speak with the bucket themselves.
WAYS = ("regular", "lfs", "multipart", "direct")


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the client ask servers, which it decides when it is imported; it has no connection left over afterwards."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield
    huggingface_hub.close_session()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """One of the ways."""
    return str(request.param)


@pytest.fixture
def served(
    way: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """A hub for one of the ways; with `regular`, the client has Xet and does not know that the hub has none."""
    if way == "direct":
        request.getfixturevalue("s3_keys")
        store: LocalStore | BucketStore = BucketStore(request.getfixturevalue("s3").bucket(), QUICK)
    else:
        store = LocalStore(tmp_path / "served")
    if way != "regular":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("deltahub.server.git_attributes.LARGE_FROM", 1000)
    if way == "direct":
        monkeypatch.setattr(downloads, "DIRECT_FROM", 1000)
    if way == "multipart":
        monkeypatch.setattr(lfs, "MULTIPART_FROM", 100_000)
        monkeypatch.setattr(lfs, "PART", 100_000)
    settings = Settings(upload_mode="regular" if way == "regular" else "lfs", direct=way == "direct", rate=0)
    with hub_server(Registry(store, "served"), settings) as hub:
        yield hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A hub as it is set up by default, over a folder."""
    with hub_server(Registry(LocalStore(tmp_path / "served"), "served"), Settings(rate=0)) as running:
        yield running


@pytest.fixture
def user() -> Callable[..., HfApi]:
    """A client of a hub, with a token of its own."""

    def make(hub: HubServer, scope: str = "write", *namespaces: str) -> HfApi:
        return HfApi(hub.url, hub.token(scope, *namespaces))  # type: ignore[arg-type]

    return make


@pytest.fixture
def api(hub: HubServer, user: Callable[..., HfApi]) -> HfApi:
    """A client that may write everywhere."""
    return user(hub)
