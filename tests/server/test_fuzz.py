"""Whatever is sent to whatever route, the hub has an answer of its own: never an error of the server, never a header from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from deltahub.registry.registry import Registry
from deltahub.server.app import build_app
from deltahub.server.settings import Settings
from deltahub.server.tokens import Tokens
from deltahub.stores.memory import MemoryStore
from tests.server.clients import commit_body
from tests.server.raw import Answer, Wire
from tests.server.strategies import BODIES, HEADERS, LINES, METHODS, QUERIES, SEGMENTS, dumped

BOUNDED = settings(
    max_examples=100,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Target:
    """A hub with one repository of two commits, and callers with and without rights."""

    def __init__(self) -> None:
        store = MemoryStore()
        tokens = Tokens(store)
        self.app = build_app(Registry(store), Settings(failures=1_000_000))
        self.callers = [
            (),
            *(_bearer(tokens.create(scope, scope)[1]) for scope in ("read", "write", "admin")),
            _bearer("no"),
        ]
        self.writer = self.callers[2]
        self.routes = [route for route in _routes(self.app.routes) if route.path != "/metrics"]
        self.wire = Wire(self.app).__enter__()
        self.send(b"/api/repos/create", "POST", json.dumps({"name": "ner", "organization": "acme"}).encode())
        for text in ("one", "two"):
            self.send(
                b"/api/models/acme/ner/commit/main", "POST", commit_body({"README.md": f"# {text}", "a/b.json": "{}"})
            )

    def send(self, target: bytes, method: str, body: bytes = b"", headers=None) -> Answer:
        return self.wire.send(method, target, self.writer if headers is None else headers, body)


def _bearer(secret: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"authorization", f"Bearer {secret}".encode()),)


def _routes(routes) -> Iterator[Route]:
    for route in routes:
        if isinstance(route, Route):
            yield route
        else:
            yield from _routes(getattr(route, "routes", None) or ())


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    target = Target()
    yield target
    target.wire.__exit__()


def filled(template: str, segments: list[str]) -> str:
    """A route's pattern with something for each of its parameters."""
    left = iter(segments)
    return re.sub(r"\{[^}]*\}", lambda _: next(left, "acme"), template)


def ours(answer: Answer) -> bool:
    """Whether an answer is one that the hub meant to give."""
    injected = any(name.lower() == b"x-evil" or b"\n" in value or b"\r" in value for name, value in answer.headers)
    return (200 <= answer.status < 500 or answer.status == 501) and not injected and b"Traceback" not in answer.body


@pytest.mark.slow
@BOUNDED
@given(data=st.data())
def test_no_request_to_a_route_is_too_much_for_it(target, data):
    route = data.draw(st.sampled_from(target.routes))
    path = filled(route.path, data.draw(st.lists(SEGMENTS, min_size=5, max_size=5)))
    method = data.draw(st.sampled_from(sorted(route.methods or {"GET"})) | METHODS)
    query = data.draw(QUERIES)
    address = f"{path}?{query}".encode("latin-1", "replace")
    headers = (*data.draw(st.sampled_from(target.callers)), *data.draw(HEADERS))
    answer = target.send(address, method, data.draw(BODIES), headers)
    assert ours(answer), (method, address, answer)


@pytest.mark.slow
@BOUNDED
@given(lines=LINES, damage=st.binary(max_size=6), place=st.integers(0, 200))
def test_no_commit_is_too_much_for_it(target, lines, damage, place):
    body = b"\n".join(map(dumped, [{"key": "header", "value": {"summary": "x"}}, *lines]))
    for sent in (body, body[:place] + damage + body[place:]):
        answer = target.send(b"/api/models/acme/ner/commit/main", "POST", sent)
        assert ours(answer), (sent, answer)


@pytest.mark.slow
@BOUNDED
@given(path=st.binary(max_size=60).map(lambda path: b"/" + path), method=METHODS, body=BODIES)
def test_no_address_is_too_much_for_it(target, path, method, body):
    answer = target.send(path, method, body)
    assert ours(answer), (method, path, answer)


def test_after_all_that_the_repository_is_as_readable_as_before(target):
    for revision in (b"v1", b"v2", b"main"):
        assert target.send(b"/acme/ner/resolve/" + revision + b"/README.md", "GET").status == 200
