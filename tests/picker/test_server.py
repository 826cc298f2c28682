import http.client
import json
import socket
import threading
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from deltahub import LoraModel
from deltahub.deltas import LoraConfig
from deltahub.errors import NothingChosenError
from deltahub.picker.server import LARGEST, PickerServer
from deltahub.picker.session import Session
from tests.backbones import bert

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture
def session():
    return Session(bert(), {"lora": (LoraModel, LoraConfig())}, grace=60.0)


@pytest.fixture
def server(session):
    with PickerServer(session) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        session.over.set()
        server.shutdown()
        thread.join()


def request(server, method, below, body=None, path=None, headers=()):
    """Status, headers and body of an answer."""
    url = urlsplit(server.url)
    with closing(http.client.HTTPConnection(url.hostname, url.port, timeout=60)) as connection:
        connection.request(method, path or url.path + below, body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def choice(*names, delta_type="lora"):
    return json.dumps({"names": names, "type": delta_type})


@pytest.mark.parametrize(
    "below", ["", "palette.css", "picker.css", "picker.js", "rows.js", "items.js", "icon.svg", "tree"]
)
def test_everything_that_the_page_needs_is_served_under_strict_headers(server, below):
    status, headers, body = request(server, "GET", below)

    assert status == 200
    assert body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]


def test_the_page_has_no_script_or_style_in_it_and_nothing_from_elsewhere(server):
    page = request(server, "GET", "")[2].decode()

    assert "<style" not in page
    assert "style=" not in page
    assert "onclick" not in page
    assert "//" not in page.replace("<!doctype html>", "")
    assert page.count("<script") == page.count('src="picker.js"></script>') == 1


def test_it_listens_on_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/tree", "/wrong/", "/wrong/tree", "//", "/../", "/%00/", "/%C3%A9/"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_without_the_token_is_refused(server, session, method, path):
    status, _, body = request(server, method, "", path=path, body=choice(QUERY))

    assert status == 403
    assert b"Bert" not in body
    assert not session.over.is_set()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8888"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
@pytest.mark.parametrize(("method", "below"), [("GET", ""), ("GET", "tree"), ("POST", "submit"), ("POST", "cancel")])
def test_foreign_hosts_and_origins_are_refused(server, session, method, below, headers):
    status, _, body = request(server, method, below, choice(QUERY), headers=headers.items())

    assert status == 403
    assert b"Bert" not in body
    assert not session.over.is_set()


def test_its_own_names_are_accepted_also_through_a_forwarded_port(server):
    for host in ("localhost:9999", "127.0.0.1"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert request(server, "POST", "preview", choice(QUERY), headers=headers.items())[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ("{", {}, 400),
        ("[]", {}, 400),
        ('{"names": "query", "type": "lora"}', {}, 400),
        ('{"names": [1], "type": "lora"}', {}, 400),
        ('{"names": []}', {}, 400),
        ("[" * 100_000, {}, 400),
        (b"\xff\xfe", {}, 400),
        (choice("bert.nothing"), {}, 400),
        (choice(QUERY, delta_type="nothing"), {}, 400),
        (None, {"Content-Length": str(LARGEST + 1)}, 413),
        (None, {"Content-Length": "-1"}, 411),
        (None, {"Transfer-Encoding": "chunked"}, 411),
    ],
)
@pytest.mark.parametrize("below", ["preview", "submit"])
def test_a_request_that_makes_no_sense_is_refused_and_the_session_goes_on(
    server, session, below, body, headers, status
):
    assert request(server, "POST", below, body, headers=headers.items())[0] == status
    assert not session.over.is_set()


@pytest.mark.parametrize(
    ("method", "below"), [("GET", "picker.html"), ("GET", "../tree.py"), ("POST", ""), ("POST", "tree")]
)
def test_only_listed_files_are_served(server, method, below):
    assert request(server, method, below, choice())[0] == 404


def test_methods_that_it_does_not_know_are_refused(server):
    assert request(server, "PUT", "")[0] == 501
    assert request(server, "OPTIONS", "")[0] == 501


def test_a_preview_changes_nothing_and_a_submit_ends_it(server, session):
    status, _, body = request(server, "POST", "preview", choice(QUERY))
    assert (status, json.loads(body)["parameters"]) == (200, 8 * (16 + 16))
    assert not session.over.is_set()

    status, _, body = request(server, "POST", "submit", choice(QUERY))
    assert (status, json.loads(body)["line"]) == (200, 'modified_modules=["0.attention.self.query"]')
    assert session.wait().names == (QUERY,)


def test_a_refused_choice_cannot_be_submitted(server, session):
    status, _, body = request(server, "POST", "submit", choice("bert.encoder"))

    assert status == 200
    assert "bert.encoder is a BertEncoder; expected a Linear" in json.loads(body)["refusal"]
    assert not session.over.is_set()


@pytest.mark.parametrize(("first", "second"), [("submit", "cancel"), ("cancel", "submit"), ("submit", "submit")])
def test_the_first_choice_counts_and_the_second_is_refused(server, session, first, second):
    assert "refusal" not in json.loads(request(server, "POST", first, choice(QUERY))[2])
    assert json.loads(request(server, "POST", second, choice("classifier"))[2])["refusal"].endswith("already ended.")

    if first == "submit":
        assert session.wait().names == (QUERY,)
    else:
        with pytest.raises(NothingChosenError):
            session.wait()


def test_a_page_that_goes_before_its_answer_has_chosen_all_the_same(session):
    def gone(answer):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        session.submit([QUERY], "lora", gone)

    assert session.wait().names == (QUERY,)


def test_cancelling_ends_it_without_a_choice(server, session):
    assert request(server, "POST", "cancel")[0] == 200
    with pytest.raises(NothingChosenError, match="cancelled on the page"):
        session.wait()


def open_line(server):
    """A page's open line, and the start of the answer."""
    url = urlsplit(server.url)
    line = socket.create_connection((url.hostname, url.port), timeout=60)
    line.sendall(f"GET {url.path}open HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
    assert b"text/event-stream" in line.recv(4096)
    return line


@pytest.mark.parametrize("grace", [0.0, 0.05])
def test_when_the_last_page_goes_the_session_ends(server, session, grace):
    session._grace = grace
    lines = [open_line(server), open_line(server)]
    lines[0].close()
    request(server, "POST", "preview", choice(QUERY))
    assert not session.over.is_set()

    lines[1].close()
    with pytest.raises(NothingChosenError, match="its page was closed"):
        session.wait()


def test_a_page_that_comes_back_in_time_keeps_the_session(server, session):
    open_line(server).close()
    with closing(open_line(server)):
        request(server, "POST", "submit", choice(QUERY))

    assert session.wait().names == (QUERY,)


def test_a_session_waits_until_its_page_is_opened(server, session):
    session._grace = 0.0

    assert not session._is_left()
