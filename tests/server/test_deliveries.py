"""Events reach webhooks at least once, signed, and nothing else is reached."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import pytest

from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import ConfigError, NotFoundError, UnreachableError
from deltahub.hub.hub import Hub
from deltahub.hub.watch import Watch
from deltahub.reference import Reference
from deltahub.registry.edits import set_alias
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.server.deliveries import ATTEMPTS, Deliveries, Dispatcher, deliveries
from deltahub.server.records import Record, Records
from deltahub.server.tokens import Tokens
from deltahub.server.webhooks import Watched, Webhook, Webhooks
from deltahub.sources.web.post import post, signature
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import save_checkpoint

WHEN = "2026-01-02T03:04:05Z"
NER = Reference.parse("acme/ner")
ID = "0" * 24


class Receiver:
    """The bodies that a webhook gets, and whether it answers."""

    def __init__(self) -> None:
        self.events: list[dict[str, str]] = []
        self.down = False

    def __call__(self, url: str, body: bytes, time: int, secret: str | None, *, private: bool) -> None:
        if self.down:
            raise UnreachableError("no answer")
        self.events.append(json.loads(body)["event"])

    @property
    def texts(self) -> list[str]:
        return [f"{it['delta']} {it['action']} {it['what']}" for it in self.events]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "0")


@pytest.fixture
def registry(folder):
    made = Registry(MemoryStore())
    publish(made, Publication(NER, describe(folder), folder))
    token, _ = Tokens(made.store).create("ci", "write", ["acme"])
    watched = (Watched("org", "ACME"),)
    Webhooks(made.store).save(
        Webhook(ID, "ci", token.id, "https://example.org", watched, ("repo",), "key", disabled=False, created=WHEN)
    )
    return made


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def dispatcher(registry, receiver, clock) -> Dispatcher:
    return Dispatcher(registry, send=receiver, clock=lambda: clock[0])


def state(registry) -> Deliveries:
    return deliveries(registry.store).find(f"ci/{ID}")


def test_each_change_is_sent_once_also_by_another_process_and_after_a_rename(dispatcher, registry, receiver):
    dispatcher.run()
    set_alias(registry, "acme/ner", "champion", "v1", reason="better")
    dispatcher.run()
    Dispatcher(registry, send=receiver).run()
    assert receiver.texts == ["acme/ner push v1", "acme/ner alias champion"]
    assert receiver.events[1]["text"] == "acme/ner: alias champion (nothing -> v1) by ada: better"
    rename(registry, NER, Reference.parse("acme/nli"))
    dispatcher.run()
    assert receiver.texts[2:] == ["acme/nli rename acme/nli"]
    assert len({event["id"] for event in receiver.events}) == 3


def test_a_receiver_that_is_down_is_tried_again_later_and_loses_nothing(dispatcher, registry, receiver, clock):
    receiver.down = True
    for expected in (15.0, 45.0, 105.0):
        dispatcher.run()
        assert state(registry).due == expected
        dispatcher.run()
        clock[0] = expected
    receiver.down = False
    dispatcher.run()
    assert (receiver.texts, state(registry).attempts, state(registry).delivered) == (["acme/ner push v1"], 0, 1)


def test_an_event_that_is_never_taken_is_given_up_and_can_be_seen(dispatcher, registry, receiver, clock):
    receiver.down = True
    for _ in range(ATTEMPTS):
        dispatcher.run()
        clock[0] += 86_400.0
    (dead,) = state(registry).dead
    assert (dead["event"]["action"], dead["error"]) == ("push", "no answer")
    receiver.down = False
    set_alias(registry, "acme/ner", "champion", "v1")
    dispatcher.run()
    assert receiver.texts == ["acme/ner alias champion"]


def test_a_process_that_sends_is_not_disturbed_and_one_that_died_is_replaced(dispatcher, registry, receiver, clock):
    deliveries(registry.store).change(f"ci/{ID}", lambda _: Deliveries(leased=500.0))
    dispatcher.run()
    assert receiver.events == []
    clock[0] = 501.0
    dispatcher.run()
    assert receiver.texts == ["acme/ner push v1"]


def test_nothing_is_sent_that_the_token_of_the_webhook_may_not_read(dispatcher, registry, receiver, folder):
    publish(registry, Publication(Reference.parse("others/secret"), describe(folder), folder))
    records = Records(registry.store)
    records.change("others/secret", lambda _: Record(WHEN, "eve", private=True))
    Webhooks(registry.store).change("ci", ID, lambda hook: replace(hook, watched=(Watched("org", "others"),)))
    dispatcher.run()
    Tokens(registry.store).revoke("ci")
    records.change("others/secret", lambda _: Record(WHEN, "eve"))
    dispatcher.run()
    assert receiver.events == []


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost:1", "[::1]:1", "169.254.169.254", "0x7f.1:1", "10.0.0.1"])
def test_no_private_address_is_called_and_no_connection_made(host, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was made"))
    with pytest.raises(UnreachableError, match="not public"):
        post(f"http://{host}/", b"{}", 0)


def test_a_name_that_resolves_to_a_private_address_later_is_not_called_either(monkeypatch):
    public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
    monkeypatch.setattr("deltahub.sources.web.post.socket.getaddrinfo", lambda *_, **__: public)

    class Connected:
        def getpeername(self) -> tuple[str, int]:
            return "127.0.0.1", 80

        def close(self) -> None:
            pass

    monkeypatch.setattr("urllib3.connection.HTTPConnection._new_conn", lambda _: Connected())
    with pytest.raises(UnreachableError, match="not public"):
        post("http://example.org/", b"{}", 0)


def test_the_signature_covers_the_time_the_body_and_the_secret():
    assert signature("key", b"{}", 7).startswith("t=7,v1=")
    signed = {
        signature(*values) for values in (("key", b"{}", 7), ("key", b"{}", 8), ("key", b"[]", 7), ("k", b"{}", 7))
    }
    assert len(signed) == 4


def test_a_namespace_or_a_delta_is_watched_without_a_hub(registry, tmp_path, folder):
    hub = Hub({"local": registry}, Cache(tmp_path / "cache"))
    namespace, delta = Watch(hub, "local:acme"), Watch(hub, "acme/ner")
    set_alias(registry, "acme/ner", "champion", "v1")
    publish(registry, Publication(Reference.parse("acme/new"), describe(folder), folder))
    assert [(it.delta, it.move.action) for it in namespace.poll()] == [("acme/ner", "alias"), ("acme/new", "push")]
    assert [(it.delta, it.move.action) for it in delta.poll()] == [("acme/ner", "alias")]
    assert [*namespace.poll(), *delta.poll()] == []
    with pytest.raises(NotFoundError, match="The namespace nobody"):
        Watch(hub, "nobody")
    with pytest.raises(ConfigError, match="Leave out"):
        Watch(hub, "acme/ner@v1")
