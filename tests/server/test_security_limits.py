"""What one request may cost: oversize heads and bodies, slow clients, foreign names, headers that somebody wants to inject."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from deltahub.registry.registry import Registry
from deltahub.server.app import build_app
from deltahub.server.connections import GuardedProtocol
from deltahub.server.errors import Refusal, header_text
from deltahub.server.settings import Settings
from deltahub.stores.memory import MemoryStore
from tests.server.guarded import guarded
from tests.server.raw import Wire
from tests.server.running import listening


class Impatient(GuardedProtocol):
    """A connection that waits for a head, or for a reader, as long as a test may."""

    head = 0.2
    stalled = 0.2
    ended = threading.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.ended.set()


def client(**settings) -> TestClient:
    return TestClient(guarded(MemoryStore(), Settings(**settings)))


# ----- sizes -----


@pytest.mark.parametrize(("count", "status"), [(1000, 200), (1001, 413)])
def test_a_body_may_be_as_large_as_the_settings_say_and_no_larger(count, status):
    assert client(max_body=1000).post("/echo", content=b"x" * count).status_code == status


def test_a_body_without_a_length_is_counted_while_it_comes():
    def pieces(count: int) -> Iterator[bytes]:
        yield from [b"x" * 100] * count

    hub = client(max_body=1000)
    assert hub.post("/echo", content=pieces(10)).json() == {"received": 1000}
    answer = hub.post("/echo", content=pieces(11))
    assert answer.status_code == 413
    assert "1,000 bytes" in answer.json()["error"]


def test_a_client_that_sends_too_much_sees_the_answer_however_late_it_looks():
    with listening(guarded(MemoryStore(), Settings(max_body=1000))) as address:
        body = b"x" * (4 << 20)
        with socket.create_connection(address, timeout=30) as line:
            line.sendall(b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert line.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_commit_and_a_file_have_limits_of_their_own():
    hub = client(max_body=10, max_commit=100, max_file=1000)
    assert hub.post("/api/models/x/y/commit/main", content=b"x" * 100).status_code == 200
    assert hub.post("/api/models/x/y/commit/main", content=b"x" * 101).status_code == 413
    assert hub.put("/x/y.git/info/lfs/objects/z", content=b"x" * 1000).status_code == 200
    assert hub.put("/x/y.git/info/lfs/objects/z", content=b"x" * 1001).status_code == 413
    assert hub.put("/echo", content=b"x" * 11).status_code == 413


@pytest.mark.parametrize(
    "target",
    [
        "/api/models/x/commit/preupload/main",
        "/api/models/commit/commit/tag/main",
        "/commit/x.git/info/lfs/objects/batch",
        "/api/models/commit/x.git/info/lfs/objects/batch",
    ],
)
def test_no_name_of_a_repository_makes_room_for_a_larger_body(target):
    hub = TestClient(build_app(Registry(MemoryStore()), Settings(max_body=10)))
    assert hub.post(target, content=b" " * 11).status_code == 413


@pytest.mark.parametrize("length", ["-1", "1e9", "0x10", "9" * 30, "10, 10", "+5", "\u00b2"])
def test_a_length_that_is_no_number_of_bytes_is_refused(length):
    scope_headers = [("Content-Length", length.encode())]
    assert client().post("/echo", headers=scope_headers).status_code in (400, 413)


def test_too_many_headers_and_too_long_addresses_are_refused():
    hub = client(max_header_count=20)
    assert hub.get("/caller", headers={f"x-{number}": "1" for number in range(30)}).status_code == 431
    assert hub.get("/caller?" + "x" * 10_000).status_code == 414


@pytest.mark.parametrize("target", [b"/?q=\x80", b"/\xff", b"/?next=\xf0\x9f", b"/a b", b"/\x00"])
def test_an_address_that_is_not_quoted_is_refused_to_programs_and_to_browsers(target):
    browser = [(b"accept", b"text/html"), (b"cookie", b"deltahub_token=dhub_nothing")]
    with Wire(build_app(Registry(MemoryStore()))) as wire:
        assert [wire.send("GET", target, headers).status for headers in ([], browser)] == [400, 400]


def test_a_head_that_goes_on_and_on_is_cut_off():
    with listening(guarded(MemoryStore())) as address, socket.create_connection(address, timeout=10) as line:
        line.sendall(b"GET /caller HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        with pytest.raises(OSError):  # noqa: PT012  (the answer, or the reset, comes while it is sent)
            for _ in range(1000):
                line.sendall(b"X-Long: " + b"x" * 8000 + b"\r\n")
            if line.recv(65536).startswith(b"HTTP/1.1 4"):
                raise ConnectionResetError


def test_a_search_for_more_than_the_index_takes_at_once_is_no_error_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path))
    hub = TestClient(build_app(Registry(MemoryStore())))
    assert hub.get("/api/models?search=" + "a+" * 2000).status_code == 400
    assert hub.get("/?q=" + "a+" * 2000).status_code == 200
    assert hub.get("/?" + "&".join(f"tag={number}" for number in range(1001))).status_code == 200


# ----- slow clients -----


def test_a_connection_on_which_no_request_comes_is_closed():
    with listening(guarded(MemoryStore()), Impatient) as address, socket.create_connection(address, timeout=10) as line:
        assert closed(line)


def test_a_head_that_comes_letter_by_letter_is_given_up_on():
    with listening(guarded(MemoryStore()), Impatient) as address, socket.create_connection(address, timeout=10) as line:
        line.settimeout(0.05)
        for letter in b"GET /caller HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa":
            try:
                line.sendall(bytes([letter]))
                if line.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except OSError:
                return
        pytest.fail("the head took as long as it wanted")


def test_a_second_request_that_stays_half_is_given_up_on():
    with listening(guarded(MemoryStore()), Impatient) as address, socket.create_connection(address, timeout=10) as line:
        line.sendall(b"GET /caller HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += line.recv(65536)
        line.sendall(b"GET /caller HTTP/1.1\r\n")
        assert closed(line)


def test_a_body_that_stops_coming_is_answered_and_the_connection_closed():
    app = guarded(MemoryStore(), Settings(idle=0.2))
    with listening(app) as address, socket.create_connection(address, timeout=10) as line:
        line.sendall(b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nonly this")
        answer = b""
        while chunk := line.recv(65536):
            answer += chunk
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"Only 9 bytes" in answer


def test_an_answer_that_is_not_read_is_cut_off():
    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (64 << 20))]})
        for _ in range(64):
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    Impatient.ended.clear()
    with listening(flood, Impatient) as address, socket.create_connection(address, timeout=10) as line:
        line.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert Impatient.ended.wait(10)
        got = 0
        with pytest.raises(ConnectionResetError):  # noqa: PT012
            while chunk := line.recv(1 << 20):
                got += len(chunk)
            raise ConnectionResetError
        assert got < 64 << 20


def closed(line: socket.socket) -> bool:
    """Whether the other side ends a connection before the socket's timeout."""
    try:
        return line.recv(1) == b""
    except ConnectionResetError:
        return True


# ----- browsers -----


def test_a_hub_answers_to_its_own_names_only():
    hub = client(hosts=("127.0.0.1", "localhost", "hub.acme.org"))
    for host in ("127.0.0.1:8000", "LOCALHOST", "hub.acme.org"):
        assert hub.get("/caller", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "127.0.0.1@evil.example", "hub.acme.org.:80"):
        assert hub.get("/caller", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "told",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://testserver.evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_no_page_of_another_site_changes_a_hub_that_asks_for_no_token(told):
    hub = TestClient(build_app(Registry(MemoryStore()), Settings(anonymous="write")))
    made = {"name": "ner", "organization": "acme"}
    answer = hub.post("/api/repos/create", json=made, headers=told)
    assert (answer.status_code, "another site" in answer.json()["error"]) == (403, True)
    assert hub.get("/api/models").json() == []
    own = {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}
    assert hub.post("/api/repos/create", json=made, headers=own).status_code == 200
    assert hub.post("/api/repos/create", json={**made, "name": "other"}).status_code == 200


def test_every_answer_keeps_browsers_from_running_what_it_holds():
    for path in ("/caller", "/nothing", "/fail", "/healthz"):
        headers = client().get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cache-Control"] == "private, no-cache"
        assert "Set-Cookie" not in headers
        assert "Access-Control-Allow-Origin" not in headers


def test_a_hub_behind_tls_tells_browsers_to_stay_there():
    hub = guarded(MemoryStore())
    assert "Strict-Transport-Security" in TestClient(hub, base_url="https://hub.acme.org").get("/caller").headers
    assert "Strict-Transport-Security" not in TestClient(hub).get("/caller").headers


# ----- headers -----


@pytest.mark.parametrize(
    "text", ["a\r\nSet-Cookie: x=1", "a\nb", "a\x00b", "na\u00efve \u2713", "\u2028", "a\x85b", "x" * 9000]
)
def test_no_text_in_a_refusal_adds_a_header_or_breaks_one(text):
    value = header_text(text)
    assert value.isascii()
    assert value.isprintable()
    assert len(value) <= 500
    answer = Refusal(400, text).answer()
    assert [name for name, _ in answer.raw_headers if name == b"set-cookie"] == []
    assert answer.headers["X-Error-Message"] == value


def test_a_header_in_a_path_stays_in_the_path():
    answer = client().get("/read/a%0d%0aSet-Cookie:%20x=1/private")
    assert answer.status_code in (400, 401)
    assert "set-cookie" not in answer.headers
