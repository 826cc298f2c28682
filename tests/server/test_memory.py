"""What requests hold in memory: nothing before the caller is known, and altogether no more than the settings say."""

from __future__ import annotations

import asyncio
import gc
import json
import re

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from deltahub.checkpoint.manifest import FileEntry
from deltahub.files.sized_cache import SizedCache
from deltahub.registry.registry import Registry
from deltahub.server.app import build_app
from deltahub.server.budget import Budget, Reservation
from deltahub.server.errors import Refusal
from deltahub.server.routes.operations import Parser
from deltahub.server.settings import Settings
from deltahub.server.state import FileSizes
from deltahub.server.tokens import Tokens
from deltahub.stores.memory import MemoryStore
from tests.server.clients import commit_body
from tests.server.raw import Wire, scope_of

OPEN = (
    "/api/validate-yaml",
    "/-/sign-in",
    "/-/sign-out",
    "/-/theme",
)  # clients send no token there, or it is in the body


def bearer(store, scope: str, *namespaces: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"authorization", f"Bearer {Tokens(store).create(scope, scope, namespaces)[1]}".encode()),)


def asked(app, method: str, target: str, headers=()) -> tuple[int, int]:
    """The status of the answer to a request, and how often a piece of its body was asked for."""
    status = reads = 0

    async def receive():
        nonlocal reads
        reads += 1
        return {"type": "http.request", "body": b"[" * 100, "more_body": False}

    async def send(message):
        nonlocal status
        status = message.get("status", status)

    with Wire(app) as wire:
        wire.run(app(scope_of(method, target.encode(), headers), receive, send))
    return status, reads


def changing(app) -> list[tuple[str, str]]:
    """A request for every route that may have a body."""
    found = []
    for route in app.routes:
        if isinstance(route, Route) and route.path not in OPEN:
            target = re.sub(r"\{namespace:part\}/\{name:part\}", "acme/ner", route.path)
            target = re.sub(r"\{[^}]*\}", "main", target)
            found += [(method, target) for method in (route.methods or ()) if method not in ("GET", "HEAD")]
    return found


def test_nothing_of_a_body_is_read_before_the_caller_is_known():
    store = MemoryStore()
    app = build_app(Registry(store), Settings(anonymous="none"))
    requests = changing(app)
    assert len(requests) > 20
    for method, target in requests:
        assert (asked(app, method, target)[1], target) == (0, target)


@pytest.mark.parametrize("scope", ["read", "write"])
def test_nothing_of_a_body_is_read_of_a_caller_who_may_not_send_it(scope):
    store = MemoryStore()
    app = build_app(Registry(store), Settings())
    headers = bearer(store, scope, "other")
    for method, target in changing(app):
        needs_body_to_know = (target.startswith("/api/repos/") and scope == "write") or target.endswith(
            "/objects/batch"
        )
        needs_body_to_know |= target == "/api/settings/webhooks" and scope == "write"  # what it would watch
        status, reads = asked(app, method, target, headers)
        assert status < 500 or status == 501
        assert reads == 0 or needs_body_to_know, (method, target)


@pytest.mark.parametrize(
    ("method", "target", "most"),
    [
        ("POST", b"/api/repos/create", 64 << 10),
        ("DELETE", b"/api/repos/delete", 64 << 10),
        ("PUT", b"/api/models/acme/ner/settings", 64 << 10),
        ("POST", b"/acme/ner.git/info/lfs/verify", 64 << 10),
        ("POST", b"/acme/ner.git/info/lfs/objects/batch", 1 << 20),
        ("POST", b"/api/models/acme/ner/preupload/main", 1 << 20),
    ],
)
def test_a_body_that_names_little_has_to_be_small(method, target, most):
    store = MemoryStore()
    app = build_app(Registry(store))
    headers = bearer(store, "admin")
    with Wire(app) as wire:
        assert wire.send(method, target, headers, b" " * (most + 1)).status == 413
        assert wire.send(method, target, headers, b" " * most).status < 413


def test_unfinished_bodies_use_a_limited_share_of_memory():
    store = MemoryStore()
    app = build_app(Registry(store), Settings(buffered=400_000))
    mallory, ada = bearer(store, "write"), bearer(store, "admin")
    statuses = []

    async def stalled(count: int) -> None:
        """Send half of a body, and no more."""
        sent = asyncio.Event()

        async def receive():
            if not sent.is_set():
                sent.set()
                return {"type": "http.request", "body": b" " * count, "more_body": True}
            reached.set()
            return await asyncio.Future()  # it never comes

        async def send(message):
            if "status" in message:
                statuses.append((message["status"], dict(message["headers"]).get(b"retry-after")))

        await app(scope_of("POST", b"/api/repos/create", mallory), receive, send)

    with Wire(app) as wire:
        requests = []
        for _ in range(2):
            reached = asyncio.Event()
            requests.append(wire.begin(stalled(50_000)))
            wire.run(reached.wait())
        assert app.state.hub.bodies.bytes_in_use == 100_000
        wire.run(stalled(1000))
        assert statuses == [(503, b"2")]
        made = json.dumps({"name": "ner", "organization": "acme"}).encode()
        assert wire.send("POST", b"/api/repos/create", ada, made).status == 200
        for request in requests:
            request.cancel()
        while app.state.hub.bodies.bytes_in_use:
            wire.run(asyncio.sleep(0))


def test_a_commit_goes_on_where_the_memory_for_bodies_is_taken():
    store = MemoryStore()
    app = build_app(Registry(store), Settings(buffered=40_000))
    headers = {"Authorization": bearer(store, "write")[0][1].decode()}
    client = TestClient(app)
    assert client.post("/api/repos/create", json={"name": "ner", "organization": "acme"}, headers=headers).is_success
    body = commit_body({"large.txt": b"x" * 300_000})
    assert client.post("/api/models/acme/ner/commit/main", content=body, headers=headers).is_success
    assert app.state.hub.bodies.bytes_in_use == 0


def test_an_answer_counts_until_it_was_sent():
    store = MemoryStore()
    app = build_app(Registry(store), Settings(buffered=200_000))
    headers = {"Authorization": bearer(store, "write")[0][1].decode()}
    client = TestClient(app)
    client.post("/api/repos/create", json={"name": "ner", "organization": "acme"}, headers=headers)
    files = {"a.txt": b"a" * 100_000, "b.txt": b"b" * 250_000}
    assert client.post("/api/models/acme/ner/commit/main", content=commit_body(files), headers=headers).is_success
    assert client.get("/acme/ner/resolve/main/a.txt").content == files["a.txt"]
    refused = client.get("/acme/ner/resolve/main/b.txt")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
    gc.collect()
    assert app.state.hub.answers.bytes_in_use == 0


def test_a_share_of_a_budget_is_the_most_that_one_caller_holds():
    budget = Budget(100, 40)
    with Reservation(budget, "ada") as reservation, Reservation(budget, "bob") as other:
        reservation.resize(40)
        assert not reservation.fits(41)
        other.resize(40)
        with pytest.raises(Refusal, match="Repeat in a moment"):
            Reservation(budget, "eve").resize(21)
        reservation.resize(10)
        assert budget.bytes_in_use == 50
    assert budget.bytes_in_use == 0


def test_the_words_of_a_commit_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("deltahub.server.routes.operations._MOST_WORDS", 1000)
    parser = Parser(tmp_path, 1000)
    line = json.dumps({"key": "deletedFile", "value": {"path": "a" * 200}}).encode() + b"\n"
    parser.feed(line)
    assert parser.bytes_in_use > 200
    with pytest.raises(Refusal, match="Make several commits"):
        parser.feed(line * 5)


def test_a_cache_evicts_the_least_recently_used_entries():
    cache = SizedCache[str, bytes](100, len)
    made = []

    def get(key: str, size: int = 40) -> None:
        cache.get(key, lambda: (made.append(key), b"x" * size)[1])

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert made == ["a", "b", "c", "b"]
    get("large", 101)
    assert (cache.size, made[-1]) == (80, "large")


def test_the_sizes_of_files_are_found_by_digest():
    files = [FileEntry(f"f{number}", f"{number:064x}", number * 7) for number in (5, 1, 9, 1 << 60)]
    sizes = FileSizes([*files, FileEntry("twin", f"{5:064x}", 35)])
    assert [sizes.get(entry.sha256) for entry in files] == [entry.size for entry in files]
    assert (sizes.get("f" * 64), sizes.get("0" * 64), FileSizes(()).get("0" * 64)) == (None, None, None)
    assert sizes.weight < 400
