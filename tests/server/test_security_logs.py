"""What a hub writes down: every request and every change, as lines of JSON; a secret never, wherever it stood."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from deltahub.registry.registry import Registry
from deltahub.server import telemetry
from deltahub.server.app import build_app
from deltahub.server.descriptors import AcceptErrors
from deltahub.server.routes import health
from deltahub.server.settings import Settings
from deltahub.server.telemetry import ACCESS, AUDIT, FACTS, JsonLines, set_up
from deltahub.server.tokens import Tokens
from deltahub.stores.memory import MemoryStore
from deltahub.text.visible import redacted
from tests.server.clients import commit_body
from tests.server.guarded import guarded

SECRET = "dhub_0123456789abcdef_" + "s3cr3t-" * 6 + "x"


class Log:
    """All that a hub wrote."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, logger: logging.Logger) -> list[dict]:
        return [line for line in self.lines if line["log"] == logger.name]


@pytest.fixture
def log(monkeypatch) -> Iterator[Log]:
    """The logs of a hub that was set up as the command does it."""
    names = ("deltahub", "uvicorn", "uvicorn.error", ACCESS.name, AUDIT.name)
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    log = Log()
    monkeypatch.setattr("sys.stderr", log.stream)
    set_up()
    yield log
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def client(store) -> TestClient:
    return TestClient(guarded(store))


def test_a_request_is_one_line_that_says_who_what_and_how_it_went(log, client, store):
    _, secret = Tokens(store).create("ada", "write")
    client.post("/echo", content=b"12345", headers={"Authorization": f"Bearer {secret}", "User-Agent": "hf_hub/2"})
    (line,) = log.of(ACCESS)
    expected = {"caller": "ada", "method": "POST", "path": "/echo", "status": 200, "received": 5, "agent": "hf_hub/2"}
    assert line | expected == line
    assert line["seconds"] >= 0
    assert line["request"]


def test_a_change_is_in_the_audit_log_with_what_the_route_noted_and_a_look_is_not(log, client, store):
    _, secret = Tokens(store).create("ada", "write")
    client.post("/write/acme", headers={"Authorization": f"Bearer {secret}"})
    client.get("/caller")
    (line,) = log.of(AUDIT)
    expected = {"caller": "ada", "path": "/write/acme", "status": 200, "repository": "acme/x", "commit": "0" * 40}
    assert line | expected == line


def test_the_audit_log_says_which_repository_and_commit_though_the_address_does_not(log, store):
    _, secret = Tokens(store).create("ada", "write")
    client = TestClient(build_app(Registry(store)), headers={"Authorization": f"Bearer {secret}"})
    client.post("/api/repos/create", json={"name": "ner", "organization": "acme", "token": secret})
    sent = client.post("/api/models/acme/ner/commit/main", content=commit_body({"README.md": "# ner"}))
    client.request("DELETE", "/api/repos/delete", json={"name": "ner", "organization": "acme"})
    created, committed, deleted = log.of(AUDIT)
    assert (created["path"], created["organization"], created["name"]) == ("/api/repos/create", "acme", "ner")
    assert (committed["commit"], committed["branch"]) == (sent.json()["commitOid"], "main")
    assert (deleted["path"], deleted["name"], deleted["status"]) == ("/api/repos/delete", "ner", 200)
    assert secret[22:] not in log.text


def test_no_name_of_a_repository_keeps_a_change_out_of_the_audit_log(log, store):
    _, secret = Tokens(store).create("ada", "write")
    client = TestClient(build_app(Registry(store)), headers={"Authorization": f"Bearer {secret}"})
    client.post("/api/repos/create", json={"name": "verify-1", "organization": "preupload"})
    client.post("/api/models/preupload/verify-1/commit/main", content=commit_body({"README.md": "# x"}))
    client.post("/api/models/preupload/verify-1/preupload/main", json={"files": []})
    assert [line["path"].rpartition("/")[0] for line in log.of(AUDIT)] == [
        "/api/repos",
        "/api/models/preupload/verify-1/commit",
    ]


def test_a_refused_change_is_in_the_audit_log_too(log, client):
    client.post("/write/acme", headers={"Authorization": "Bearer nothing"})
    client.post("/write/acme")
    assert [(line["caller"], line["status"]) for line in log.of(AUDIT)] == [(None, 401), (None, 401)]


def test_a_request_that_fails_is_found_in_the_log_by_the_number_in_its_answer(log, client):
    answer = client.get("/fail", headers={})
    assert answer.status_code == 500
    assert "ZeroDivisionError" not in answer.text
    failures = [line for line in log.lines if "traceback" in line]
    assert [line["message"].split()[1] in answer.json()["error"] for line in failures] == [True]
    assert "ZeroDivisionError" in failures[0]["traceback"]


def test_names_from_outside_neither_break_nor_add_a_line(log, client):
    client.get(
        "/a%0A%7B%22log%22:%22forged%22%7D", headers={"User-Agent": 'x"}\r\n{"forged": 1}'.replace("\r\n", "\t")}
    )
    (line,) = log.of(ACCESS)
    assert line["path"].startswith("/a")
    assert "\n" not in log.text.rstrip("\n")


# ----- secrets -----


def test_no_secret_is_in_any_log_or_answer_wherever_it_came(log, client, store):
    _, secret = Tokens(store).create("ada", "write")
    random = secret[22:]
    answers = [
        client.get("/caller", headers={"Authorization": f"Bearer {secret}"}),
        client.get("/fail", headers={"Authorization": f"Bearer {secret}"}),
        client.get("/caller", headers={"Authorization": f"Token {secret}"}),
        client.get("/caller", headers={"Authorization": f"Bearer {secret}x"}),
        client.get(f"/caller?token={secret}&signature=abcdef0123456789"),
        client.get(f"/nothing/{secret}"),
        client.get("/caller", headers={"User-Agent": secret}),
        client.post(f"/write/{secret[:40]}", headers={"Authorization": f"Bearer {secret}", "Cookie": f"a={secret}"}),
    ]
    assert len(log.of(ACCESS)) == len(answers)
    for text in [log.text, *(answer.text for answer in answers[:5]), *(str(answer.headers) for answer in answers[:5])]:
        assert random not in text
        assert "abcdef0123456789" not in text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        (f"token {SECRET} here", SECRET[22:]),
        ("hf_abcdefghijklmnopqrstuvwxyz0123456789", "abcdefghijklmnopqrstuvwxyz0123456789"),
        ("Authorization: Bearer abcdefgh12345678", "abcdefgh12345678"),
        ("Authorization: Basic YWRhOnNlY3JldA==", "YWRhOnNlY3JldA=="),
        ("https://b.s3/x?X-Amz-Signature=0123abcd&X-Amz-Expires=9", "0123abcd"),
        ("https://b.s3/x?X-Amz-Credential=AKIA/2026&x=1", "AKIA/2026"),
        ("/lfs/upload?expires=5&signature=0123abcd", "0123abcd"),
        ("https://ada:hunter22@proxy.acme.org/x", "hunter22"),
    ],
)
def test_text_that_looks_like_a_secret_is_redacted(text, hidden):
    assert hidden in text
    assert hidden not in redacted(text)


@pytest.mark.parametrize("text", ["acme/hf_bert", "a token of scope write", "sha256:" + "0" * 64, "v1@champion"])
def test_names_are_not_blacked_out(text):
    assert redacted(text) == text


def test_a_secret_in_a_traceback_is_blacked_out():
    error = ValueError(f"with Bearer {SECRET}")
    record = logging.LogRecord("x", logging.ERROR, "", 1, "failed", None, (ValueError, error, None))
    assert SECRET[22:] not in JsonLines().format(record)
    assert "ValueError" in JsonLines().format(record)


def test_a_log_can_go_to_a_file_to_which_several_processes_append(tmp_path, log):
    set_up(tmp_path / "access.jsonl", tmp_path / "audit.jsonl")
    (tmp_path / "audit.jsonl").write_text('{"there": "before"}\n')
    for _ in range(2):
        AUDIT.info("", extra={FACTS: {"path": "/x"}})
        ACCESS.info("", extra={FACTS: {"path": "/y"}})
    for logger in (AUDIT, ACCESS):
        logger.handlers[0].close()
    assert [json.loads(line)["log"] for line in (tmp_path / "access.jsonl").read_text().splitlines()] == [
        ACCESS.name
    ] * 2
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 3
    assert log.text == ""
    assert telemetry.ACCESS.propagate is False


# ----- counts -----


def test_requests_are_counted_by_pattern_so_that_no_name_is_in_the_counts(client):
    client.get("/read/secret-lab/public")
    client.get("/nothing/secret-lab")
    client.request("BREW", "/caller")
    page = client.get("/metrics").text
    assert 'deltahub_requests_total{method="GET",route="/read/{namespace}/{kind}",status="200"} 1.0' in page
    assert 'deltahub_requests_total{method="GET",route="none",status="404"} 1.0' in page
    assert 'method="other"' in page
    assert "secret-lab" not in page


def test_bytes_and_seconds_are_counted(client):
    client.post("/echo", content=b"x" * 1000)
    page = client.get("/metrics").text
    assert "deltahub_received_bytes_total 1000.0" in page
    assert 'deltahub_request_seconds_count{route="/echo"} 1.0' in page
    assert "deltahub_active_requests 1.0" in page


def test_the_counts_are_for_administrators_where_others_can_reach_the_hub(store):
    client = TestClient(guarded(store, Settings(open_metrics=False)))
    tokens = Tokens(store)
    assert client.get("/metrics").status_code == 401
    for scope, status in (("read", 403), ("write", 403), ("admin", 200)):
        headers = {"Authorization": f"Bearer {tokens.create(scope, scope)[1]}"}
        assert client.get("/metrics", headers=headers).status_code == status


def test_a_hub_is_ready_only_while_its_store_answers(client, monkeypatch, log):
    monkeypatch.setattr(health, "_BELIEVED", 0.0)
    assert client.get("/readyz").text == "ready\n"

    def fail(*_):
        raise OSError(5, "Input/output error", "/srv/hub")

    monkeypatch.setattr(MemoryStore, "read_tagged", fail)
    answer = client.get("/readyz")
    assert answer.status_code in (500, 503)
    assert "/srv/hub" not in answer.text
    assert client.get("/healthz").status_code == 200


def test_a_hub_that_is_often_asked_whether_it_is_ready_asks_its_store_now_and_then(client, monkeypatch):
    assert client.get("/readyz").status_code == 200
    monkeypatch.setattr(MemoryStore, "read_tagged", lambda *_: pytest.fail("the store was read"))
    assert [client.get("/readyz").status_code for _ in range(5)] == [200] * 5


def test_that_no_more_files_can_be_opened_is_one_line_of_the_log(log):
    errors = AcceptErrors()
    context = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    for _ in range(100):
        errors(None, context)
    assert [line["message"] for line in log.lines if "connections wait" in line.get("message", "")] == [
        "New connections wait: [Errno 24] Too many open files. Raise the limit of open files of this process."
    ]
