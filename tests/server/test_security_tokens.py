"""Who calls a hub, and what they may do: no token, a wrong one, one that expired or was revoked, or one for something else."""

from __future__ import annotations

import threading
from datetime import timedelta

import huggingface_hub
import pytest
from starlette.testclient import TestClient

from deltahub.errors import StorageError
from deltahub.server import tokens as known_module
from deltahub.server.addresses import address_of
from deltahub.server.authentication import RateLimiter
from deltahub.server.settings import Settings
from deltahub.server.tokens import Tokens
from deltahub.stores.memory import MemoryStore
from tests.clocks import clock
from tests.server.guarded import guarded
from tests.server.running import listening

INVALID = "Invalid credentials in Authorization header"


class Hub:
    """A guarded application, its tokens, and a client."""

    def __init__(self, **settings) -> None:
        self.store = MemoryStore()
        self.tokens = Tokens(self.store)
        self.client = TestClient(guarded(self.store, Settings(**settings)))

    def token(self, *args, **options) -> dict[str, str]:
        """Headers with a new token."""
        return {"Authorization": f"Bearer {self.tokens.create(*args, **options)[1]}"}


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
def at_once(monkeypatch) -> None:
    """What was read of a token is believed for no time at all."""
    monkeypatch.setattr(known_module, "LIFETIME", 0.0)


def test_a_caller_is_known_by_the_token(hub):
    headers = hub.token("ada", "write")
    assert hub.client.get("/caller", headers=headers).json() == {"name": "ada", "scope": "write"}
    assert hub.client.get("/caller").json() == {"name": "", "scope": "read"}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer hf_abcdefghijklmnopqrstuvwxyz",
        "Bearer dhub_0000000000000000_" + "a" * 43,
        "Bearer ../../refs/acme/ner",
        "Bearer \xff\xfe",
        "Token x",
        "Basic YWRhOm5vdGhpbmc=",
        "Bearer " + "a" * 5000,
    ],
)
def test_a_token_that_the_hub_does_not_know_is_refused_and_never_taken_for_none(hub, value):
    answer = hub.client.get("/caller", headers={"Authorization": value.encode("latin-1")})
    assert answer.status_code == 401
    assert answer.headers["X-Error-Message"] == INVALID
    assert "not valid" in answer.json()["error"]


def test_a_token_with_one_character_changed_is_refused(hub):
    headers = hub.token("ada", "admin")
    last = headers["Authorization"][-1]
    wrong = {"Authorization": headers["Authorization"][:-1] + ("A" if last != "A" else "B")}
    assert hub.client.get("/caller", headers=wrong).status_code == 401
    assert hub.client.get("/caller", headers=headers).status_code == 200


def test_an_expired_token_is_refused_and_the_answer_says_since_when(hub):
    token, secret = hub.tokens.create("ada", "write", expires=timedelta(seconds=-1))
    answer = hub.client.get("/caller", headers={"Authorization": f"Bearer {secret}"})
    assert (answer.status_code, answer.headers["X-Error-Message"]) == (401, INVALID)
    assert f"it expired at {token.expires}" in answer.json()["error"]


def test_a_token_that_expires_while_it_is_known_is_refused(hub, monkeypatch):
    headers = hub.token("ada", "write", expires=timedelta(days=1))
    assert hub.client.get("/caller", headers=headers).status_code == 200
    monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2999-01-01T00:00:00Z")
    assert hub.client.get("/caller", headers=headers).status_code == 401


def test_a_revoked_token_is_refused_once_its_cache_entry_expires(hub, at_once):
    headers = hub.token("ada", "write")
    assert hub.client.get("/caller", headers=headers).status_code == 200
    hub.tokens.revoke("ada")
    answer = hub.client.get("/caller", headers=headers)
    assert answer.status_code == 401
    assert "it was revoked" in answer.json()["error"]


def test_a_revocation_reaches_another_process_of_the_hub(hub, at_once):
    other = TestClient(guarded(hub.store))
    headers = hub.token("ada", "write")
    assert [client.get("/caller", headers=headers).status_code for client in (hub.client, other)] == [200, 200]
    hub.tokens.revoke("ada")
    assert [client.get("/caller", headers=headers).status_code for client in (hub.client, other)] == [401, 401]


def test_known_tokens_cost_no_read_of_the_store_until_they_are_too_old(hub, monkeypatch):
    monkeypatch.setattr(known_module, "LIFETIME", 3600.0)
    headers = hub.token("ada", "write")
    assert hub.client.get("/caller", headers=headers).status_code == 200
    monkeypatch.setattr(MemoryStore, "read_tagged", lambda *_: pytest.fail("the store was read"))
    assert hub.client.get("/caller", headers=headers).status_code == 200


def test_an_unreachable_store_gives_no_access(hub, monkeypatch):
    headers = hub.token("ada", "write")

    def fail(*_):
        raise StorageError("The disk of /srv/hub is gone")

    monkeypatch.setattr(MemoryStore, "read_tagged", fail)
    answer = hub.client.get("/caller", headers=headers)
    assert answer.status_code == 503
    assert "/srv/hub" not in answer.text


def test_two_authorizations_in_one_request_are_refused(hub):
    one = hub.token("ada", "write")["Authorization"]
    assert hub.client.get("/caller", headers=[("Authorization", one), ("Authorization", one)]).status_code == 401


# ----- rights -----


@pytest.mark.parametrize("scope", ["none", "read"])
def test_writing_needs_a_token(scope):
    answer = Hub(anonymous=scope).client.post("/write/acme")
    assert answer.status_code == 401
    assert "needs a token of scope write" in answer.json()["error"]


def test_a_read_token_does_not_write(hub):
    answer = hub.client.post("/write/acme", headers=hub.token("ada", "read"))
    assert answer.status_code == 403
    assert "scope read" in answer.json()["error"]


def test_a_token_writes_in_its_own_namespaces_only(hub):
    headers = hub.token("ada", "write", ["acme", "lab"])
    assert hub.client.post("/write/acme", headers=headers).status_code == 200
    for other in ("Acme", "acme2", "acm", "other", "acme%2F..%2Fother", "*"):
        assert hub.client.post(f"/write/{other}", headers=headers).status_code == 403


def test_private_repositories_are_read_by_their_namespaces_tokens_and_admins(hub):
    readers = {
        200: [hub.token("own", "read", ["acme"]), hub.token("every", "read"), hub.token("root", "admin")],
        404: [hub.token("other", "write", ["lab"])],
        401: [{}],
    }
    for status, callers in readers.items():
        for headers in callers:
            assert hub.client.get("/read/acme/private", headers=headers).status_code == status


def test_an_invisible_repository_is_answered_like_a_missing_one(hub):
    answer = hub.client.get("/read/acme/private", headers=hub.token("other", "read", ["lab"]))
    assert answer.headers["X-Error-Code"] == "RepoNotFound"
    assert "private" not in answer.json()["error"]


def test_a_hub_that_is_closed_to_strangers_shows_them_nothing():
    closed = Hub(anonymous="none")
    assert closed.client.get("/read/acme/public").status_code == 401
    assert closed.client.get("/read/acme/public", headers=closed.token("ada", "read", ["lab"])).status_code == 200


def test_only_an_administrator_administers(hub):
    assert hub.client.get("/admin").status_code == 401
    assert hub.client.get("/admin", headers=hub.token("ada", "write")).status_code == 403
    assert hub.client.get("/admin", headers=hub.token("root", "admin")).status_code == 200


def test_strangers_may_write_where_the_hub_says_so_and_never_administer():
    hub = Hub(anonymous="write")
    assert hub.client.post("/write/acme").status_code == 200
    assert hub.client.get("/admin").status_code == 401


# ----- how often -----


def test_rate_limited_requests_get_retry_after():
    hub = Hub(rate=0.5, burst=3)
    assert [hub.client.get("/caller").status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = hub.client.get("/caller")
    assert 1 <= int(answer.headers["Retry-After"]) <= 2
    assert answer.headers["RateLimit"].startswith('"api";r=0;t=')


def test_huggingface_hub_waits_as_long_as_requested(monkeypatch):
    from huggingface_hub.utils import http_backoff

    waits = []

    def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    now = [1000.0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock(sleep=sleep))
    monkeypatch.setattr(RateLimiter.__init__, "__defaults__", (lambda: now[0],))
    with listening(guarded(MemoryStore(), Settings(rate=0.1, burst=1))) as (host, port):
        answers = [http_backoff("GET", f"http://{host}:{port}/caller", retry_on_status_codes=429) for _ in range(2)]
    huggingface_hub.close_session()
    assert [answer.status_code for answer in answers] == [200, 200]
    assert waits == [11]  # ten seconds for the next request, and one that the client adds


def test_one_caller_s_requests_do_not_hold_up_another_and_health_is_never_held_up():
    hub = Hub(rate=0.001, burst=1)
    ada, bob = hub.token("ada", "read"), hub.token("bob", "read")
    assert [hub.client.get("/caller", headers=ada).status_code for _ in range(2)] == [200, 429]
    assert hub.client.get("/caller", headers=bob).status_code == 200
    assert [hub.client.get("/healthz").status_code for _ in range(3)] == [200, 200, 200]


def guess(number: int, letter: str = "a") -> dict[str, str]:
    """Headers with a token that nobody made."""
    return {"Authorization": f"Bearer dhub_{number:016x}_{letter * 43}"}


def test_guessing_a_token_is_stopped_and_costs_one_read_of_the_store(monkeypatch):
    monkeypatch.setattr(known_module, "LIFETIME", 3600.0)
    hub = Hub(failures=3)
    assert hub.client.get("/caller", headers=guess(1)).status_code == 401
    monkeypatch.setattr(MemoryStore, "read_tagged", lambda *_: pytest.fail("the store was read"))
    statuses = [hub.client.get("/caller", headers=guess(1, letter)).status_code for letter in "bcdef"]
    assert statuses == [401, 401, 429, 429, 429]
    assert hub.client.get("/caller").status_code == 200


def test_wrong_tokens_do_not_lock_out_other_callers_from_the_same_address():
    hub = Hub(failures=3)
    early = hub.token("early", "write")
    assert hub.client.get("/caller", headers=early).status_code == 200
    for number in range(10):
        assert hub.client.get("/caller", headers=guess(number)).status_code == 401
    for letter in "abcdefgh":
        wrong = {"Authorization": early["Authorization"][:-43] + letter * 43}
        hub.client.get("/caller", headers=wrong)
    assert hub.client.get("/caller", headers=wrong).status_code == 429
    late = hub.token("late", "write")
    assert [hub.client.get("/caller", headers=headers).status_code for headers in (early, late, {})] == [200] * 3


def test_a_revoked_token_is_reported_despite_many_wrong_ones_from_its_address(at_once):
    hub = Hub(failures=2)
    headers = hub.token("ada", "write")
    hub.tokens.revoke("ada")
    for number in range(5):
        hub.client.get("/caller", headers=guess(number))
    answer = hub.client.get("/caller", headers=headers)
    assert (answer.status_code, "it was revoked" in answer.json()["error"]) == (401, True)


def test_made_up_tokens_are_looked_up_in_a_thread_of_their_own(monkeypatch):
    hub, threads = Hub(failures=2), []
    ada = hub.token("ada", "write")
    find = Tokens.find
    monkeypatch.setattr(known_module, "LIFETIME", 0.0)
    monkeypatch.setattr(Tokens, "find", lambda *args: (threads.append(threading.current_thread().name), find(*args))[1])
    hub.client.get("/caller", headers=ada)
    for number in range(4):
        hub.client.get("/caller", headers=guess(number))
    hub.client.get("/caller", headers=ada)
    assert [name.startswith("suspect") for name in threads] == [False, False, False, True, True, False]


def test_a_bucket_fills_up_again_with_time_and_never_beyond_its_size():
    now = [1000.0]
    buckets = RateLimiter(rate=2, burst=4, clock=lambda: now[0])
    assert [buckets.take("ada") for _ in range(5)] == [0, 0, 0, 0, 1]
    now[0] += 0.5
    assert [buckets.take("ada") for _ in range(2)] == [0, 1]
    now[0] += 3600
    assert [buckets.take("ada") for _ in range(5)] == [0, 0, 0, 0, 1]


def test_made_up_callers_fill_no_memory(monkeypatch):
    monkeypatch.setattr("deltahub.server.authentication._LARGEST", 10)
    buckets = RateLimiter(rate=1, burst=1)
    for number in range(100):
        buckets.take(str(number))
    assert len(buckets._levels) == 10


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("testclient", "testclient"),
    ],
)
def test_addresses_of_one_network_count_as_one(host, address):
    assert address_of({"client": (host, 1)}) == address
