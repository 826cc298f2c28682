"""The hub as a process: it starts, ends without breaking off what is under way, and runs several times over one registry."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
import requests

from deltahub.registry.registry import Registry
from deltahub.registry.verify import verify
from deltahub.server.telemetry import ACCESS
from deltahub.server.tokens import Tokens
from deltahub.settings.source_entry import SourceEntry
from deltahub.settings.user import change
from deltahub.stores.local import LocalStore
from tests.server.clients import Client
from tests.server.processes import COMMAND, serving

pytestmark = [
    pytest.mark.slow,  # processes that serve
    pytest.mark.skipif(os.name == "nt", reason="POSIX signals"),
]


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), timeout=60)


def test_a_hub_answers_and_stops_on_a_signal(tmp_path):
    with serving(tmp_path / "log", "--registry", tmp_path / "registry") as hub:
        assert requests.get(f"{hub.url}/readyz", timeout=60).text == "ready\n"
        assert hub.stop() == 0
    text = hub.log.read_text()
    assert "No token may push yet: deltahub serve token create" in text
    assert "Traceback" not in text


def test_ctrl_c_ends_it_too(tmp_path):
    with serving(tmp_path / "log", "--registry", tmp_path / "registry", "--quiet") as hub:
        assert requests.get(f"{hub.url}/healthz", timeout=60).ok
        assert hub.stop(signal.SIGINT) == 0
    assert "Traceback" not in hub.log.read_text()
    assert ACCESS.name not in hub.log.read_text()


def test_a_request_that_is_under_way_is_finished_before_the_hub_ends(tmp_path):
    with serving(tmp_path / "log", "--registry", tmp_path / "registry", "--anonymous", "write") as hub:
        requests.get(f"{hub.url}/healthz", timeout=60)
        with connect(hub.url) as line:
            line.sendall(b"POST /api/validate-yaml HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 30\r\n\r\n")
            line.sendall(b'{"content":"","repo')
            requests.get(f"{hub.url}/healthz", timeout=60)  # by now the hub has read what came before
            hub.process.send_signal(signal.SIGTERM)
            while not refused(hub.url):
                pass
            line.sendall(b'Type":"a"}\n')
            answer = b"".join(iter(lambda: line.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 ")
        assert hub.process.wait(60) == 0
    assert "Traceback" not in hub.log.read_text()


def refused(url: str) -> bool:
    """Whether nothing listens there any more."""
    try:
        connect(url).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


def test_several_processes_serve_one_registry_and_all_refuse_revoked_tokens(tmp_path):
    tokens = Tokens(LocalStore(tmp_path / "registry"))
    _, secret = tokens.create("ada", "write")
    headers = {"Authorization": f"Bearer {secret}", "Connection": "close"}
    with serving(tmp_path / "log", "--registry", tmp_path / "registry", "--workers", 2) as hub:
        whoami = f"{hub.url}/api/whoami-v2"
        assert [requests.get(whoami, headers=headers, timeout=60).status_code for _ in range(20)] == [200] * 20
        tokens.revoke("ada")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            statuses = {requests.get(whoami, headers=headers, timeout=60).status_code for _ in range(20)}
            if statuses <= {401, 429}:
                break
        assert statuses <= {401, 429}
        page = requests.get(f"{hub.url}/metrics", timeout=60).text
        counted = [line for line in page.splitlines() if "whoami" in line and 'status="200"' in line]
        assert sum(float(line.split()[-1]) for line in counted) >= 20
        assert hub.stop() == 0


def test_commits_through_several_hubs_of_several_processes_are_all_kept(tmp_path):
    registry = tmp_path / "registry"
    _, secret = Tokens(LocalStore(registry)).create("ada", "write")
    options = ("--registry", registry, "--workers", 2, "--quiet")
    with serving(tmp_path / "one", *options) as one, serving(tmp_path / "two", *options) as two:

        def push(number: int) -> None:
            with Client((one, two)[number % 2].url, secret) as client:
                client.create("acme/ner")
                client.commit("acme/ner", {f"{number}.md": f"# {number}".encode()})

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(push, range(32)))
        for hub in (one, two):
            with Client(hub.url, secret) as client:
                tree = json.loads(client.ask("GET", "/api/models/acme/ner/tree/main")[2])
                assert {entry["path"] for entry in tree} == {
                    ".gitattributes",
                    *(f"{number}.md" for number in range(32)),
                }
    assert [damage for _, damage in verify(Registry(LocalStore(registry))) if damage] == []


def test_a_bucket_is_served_by_its_name_as_a_source(tmp_path, s3, s3_keys):
    bucket = s3.bucket()
    entry = SourceEntry.checked(
        "team", f"s3://{bucket.name}/{bucket.prefix}", endpoint=bucket.endpoint, region="us-east-1"
    )
    change(lambda settings: settings.add(entry))
    _, secret = Tokens(entry.store()).create("ada", "write")
    with serving(tmp_path / "log", "--registry", "team", "--workers", 2) as hub, Client(hub.url, secret) as client:
        client.create("acme/ner")
        commit = client.commit("acme/ner", {"README.md": b"# ner"})
        assert client.pull("acme/ner", "README.md", commit) == b"# ner"
        assert client.ask("GET", "/readyz")[0] == 200
    assert Registry(entry.store()).document("acme/ner").latest == "v1"


def test_workers_end_when_their_parent_is_killed(tmp_path):
    with serving(tmp_path / "log", "--registry", tmp_path / "registry", "--workers", 2) as hub:
        assert requests.get(f"{hub.url}/healthz", timeout=60).ok
        hub.process.kill()
        hub.process.wait()
        while not refused(hub.url):
            pass


def test_a_worker_that_is_killed_is_replaced(tmp_path):
    with serving(tmp_path / "log", "--registry", tmp_path / "registry", "--workers", 2) as hub:
        requests.get(f"{hub.url}/healthz", timeout=60)
        before = workers(hub.process.pid)
        os.kill(before[0], signal.SIGKILL)
        while before[0] in workers(hub.process.pid) or len(workers(hub.process.pid)) < 2:
            pass
        assert requests.get(f"{hub.url}/healthz", timeout=60).ok
        assert hub.stop() == 0


def workers(parent: int) -> list[int]:
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "spawn_main" in line]


def test_a_hub_with_a_certificate_speaks_tls_and_nothing_else(tmp_path):
    certificate = tmp_path / "hub.pem"
    made = subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ],
            "-keyout",
            tmp_path / "hub.key",
            "-out",
            certificate,
        ],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no openssl to make a certificate with")
    options = ("--tls-cert", certificate, "--tls-key", tmp_path / "hub.key")
    with serving(tmp_path / "log", "--registry", tmp_path / "registry", *options) as hub:
        assert hub.url.startswith("https://")
        answer = requests.get(f"{hub.url}/healthz", verify=str(certificate), timeout=60)
        assert "Strict-Transport-Security" in answer.headers
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{hub.url}/healthz", timeout=60)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certificate)
        with context.wrap_socket(connect(hub.url), server_hostname="127.0.0.1") as line:
            assert line.version() in ("TLSv1.2", "TLSv1.3")
            assert hub.stop() == 0  # though somebody is still connected


UNSERVABLE = [
    (["--registry", "nobody"], 3, "nobody"),
    (["--registry", "hf"], 2, "is a hub itself"),
    (["--host", "203.0.113.1"], 2, "Cannot listen on 203.0.113.1"),
    (["--anonymous", "admin"], 2, "admin"),
    (["--upload-mode", "xet"], 2, "expected one of regular, lfs"),
    (["--tls-key", "x.key"], 2, "--tls-cert"),
    (["--tls-cert", "/nothing.pem"], 2, "nothing.pem"),
    (["--max-file", "much"], 2, "expected a number"),
]
_TRY_ALL = """
import contextlib, io, json, sys
from deltahub_cli.main import main

done = []
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
    done.append((code, err.getvalue()))
print(json.dumps(done))
"""


def test_an_unservable_registry_is_one_clear_error():
    lines = [["serve", "--port", "0", *arguments] for arguments, _, _ in UNSERVABLE]
    tried = subprocess.run(
        [COMMAND[0], "-c", _TRY_ALL, json.dumps(lines)], capture_output=True, text=True, check=False, timeout=60
    )
    assert tried.returncode == 0, tried.stderr
    for (arguments, code, words), (ended, said) in zip(UNSERVABLE, json.loads(tried.stdout), strict=True):
        assert ended == code, (arguments, said)
        assert words in " ".join(said.replace("│", " ").split())
        assert "Traceback" not in said


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*COMMAND, "--port", port], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "Choose another with --host or --port" in done.stderr) == (2, True)


def test_a_missing_package_is_one_sentence_with_the_way_to_get_it():
    script = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'uvicorn' else find(name, *more)\n"
        "from deltahub_cli.main import main\nsys.argv = ['deltahub', 'serve']\nmain()"
    )
    done = subprocess.run([COMMAND[0], "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "pip install 'deltahub[serve]'" in done.stderr


def test_logs_go_to_files_where_the_command_says_so(tmp_path):
    logs = ("--access-log", tmp_path / "access.jsonl", "--audit-log", tmp_path / "audit.jsonl")
    with serving(tmp_path / "log", "--registry", tmp_path / "registry", *logs) as hub:
        requests.get(f"{hub.url}/healthz", timeout=60)
        requests.post(f"{hub.url}/api/repos/create", json={"name": "x"}, timeout=60)
        assert hub.stop() == 0
    paths = [json.loads(line)["path"] for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert paths == ["/healthz", "/api/repos/create"]
    assert [json.loads(line)["path"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()] == paths[1:]
    assert ACCESS.name not in hub.log.read_text()
