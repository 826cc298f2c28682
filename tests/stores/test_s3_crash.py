"""An S3 server that crashes in the middle of a push: what was acknowledged is there, and the push can be repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deltahub.cache.cache import Cache
from deltahub.errors import StorageError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.stores.bucket_store import BucketStore
from tests.checkpoints import content_of
from tests.s3_proxy import Exchange, Proxy, proxied
from tests.s3_servers import QUICK, Server, new_seaweed

pytestmark = pytest.mark.slow
NER = Reference.parse("acme/ner")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of its own, for it is going to crash."""
    with new_seaweed() as running:
        yield running


@pytest.fixture
def way(server, s3_keys) -> Iterator[Proxy]:
    """The way to it."""
    with proxied(server.url) as running:
        yield running


@pytest.fixture
def team(server, way, tmp_path, new_checkpoint) -> Hub:
    """A registry there with one version, and with one object that the next push has too."""
    store = BucketStore(replace(server.bucket(), endpoint=way.url), replace(QUICK, upload=60))
    hub = Hub({"team": Registry(store, "team")}, Cache(tmp_path / "cache"))
    hub.push(new_checkpoint(value=1.0), "acme/ner")
    return hub


def crash_before(server: Server):
    """The server ends before the request reaches it."""

    def fault(exchange: Exchange) -> None:
        server.kill()
        exchange.reset()

    return fault


def crash_after(server: Server):
    """The server ends when it has done what it was asked for, and before it says so."""

    def fault(exchange: Exchange) -> None:
        exchange.forward()
        server.kill()
        exchange.reset()

    return fault


def restart(server: Server):
    """The server ends, and is there again before the client gives up."""

    def fault(exchange: Exchange) -> None:
        server.kill()
        server.start()
        exchange.reset()

    return fault


def damage(hub: Hub) -> dict[str, str | None]:
    return dict(verify(hub.registry("team")))


def pulled(hub: Hub, folder: Path) -> dict[str, bytes]:
    hub.pull(NER, to=folder, force=True)
    return content_of(folder)


@pytest.mark.parametrize(
    ("crash", "words"),
    [(crash_before, "/objects/"), (crash_after, "/refs/")],
    ids=["before an object", "after the record"],
)
def test_a_push_to_a_server_that_crashed_can_be_repeated(server, way, team, new_checkpoint, tmp_path, crash, words):
    second = new_checkpoint(value=2.0)
    way.breaks(crash(server), words=words)
    with pytest.raises(StorageError, match="cannot be reached"):
        team.push(second, "acme/ner")
    server.start()

    assert set(damage(team).values()) == {None}
    assert next(iter(damage(team))) == "acme/ner@v1"
    assert str(team.push(second, "acme/ner").reference) == "team:acme/ner@v2"
    assert damage(team) == {"acme/ner@v1": None, "acme/ner@v2": None}
    assert pulled(team, tmp_path / "copy") == content_of(second)


def test_a_push_goes_on_when_the_server_comes_back_in_time(server, way, team, new_checkpoint, tmp_path):
    second = new_checkpoint(value=2.0)
    way.breaks(restart(server), words="/refs/")
    assert str(team.push(second, "acme/ner").reference) == "team:acme/ner@v2"
    assert damage(team) == {"acme/ner@v1": None, "acme/ner@v2": None}
    assert pulled(team, tmp_path / "copy") == content_of(second)
