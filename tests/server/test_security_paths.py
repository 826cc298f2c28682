"""No name in a request leads out of the registry: in the address, in a commit, encoded or not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from deltahub.registry.registry import Registry
from deltahub.server.app import build_app
from deltahub.server.tokens import Tokens
from deltahub.stores.local import LocalStore
from tests.server.clients import commit_body
from tests.server.raw import Wire
from tests.server.test_fuzz import _routes, filled

pytestmark = pytest.mark.slow  # every route with many paths

CANARY = "the canary outside of the registry"
ESCAPES = [
    *(
        "..",
        "../..",
        "../../canary",
        "..%2f..%2fcanary",
        "%2e%2e%2f%2e%2e%2fcanary",
        "..%252f..%252fcanary",
        "....//....//canary",
    ),
    *(
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "..\\..\\canary",
        "..%5c..%5ccanary",
        "%00",
        "canary%00.json",
        "a/../../../canary",
    ),
    *(
        "%c0%ae%c0%ae%c0%afcanary",
        "%uff0e%uff0e/canary",
        "%EF%BC%8E%EF%BC%8E%EF%BC%8Fcanary",
        "\u202e",
        "file:///etc/passwd",
        "~root",
    ),
]
PATHS = [
    *(
        "../canary",
        "/canary",
        "a/../../canary",
        "a/./b",
        "..",
        ".",
        "",
        "a//b",
        "a\\..\\..\\canary",
        "C:\\canary",
        "a\x00b",
        "a\nb",
        "a/",
        " ",
    ),
    *("\ud800", "\u202egpj.exe", "a\x7f", "a/" * 300, "x" * 5000, ".git/config", ".git", "a/.git/hooks/x"),
]


UNWRITABLE = [
    *(
        "a:b",
        "what?.md",
        "a*b",
        'say "x"',
        "a|b",
        "<a>",
        "CON",
        "a/nul.txt",
        "Com1",
        "aux .md",
        "lpt\xb9",
        "dot.",
        "a./b",
    ),
    *(
        "zero\u200bwidth",
        "\ufeffbom",
        "soft\xadhyphen",
        "a\u200db",
        "tag\U000e0061",
        "\u3164",
        "line\u2028end",
        "é" * 128,
    ),
]
TWINS = [
    ("Data/a", "data/b"),
    ("stra\xdfe", "STRASSE"),
    ("caf\xe9", "cafe\u0301"),
    ("heart\u2764", "heart\u2764\ufe0f"),
    ("a/B", "A/b"),
]


class Hub:
    """A hub over a folder, beside which lies what nobody may see."""

    def __init__(self, folder: Path) -> None:
        (folder / "canary").write_text(CANARY)
        self.folder, self.store = folder, LocalStore(folder / "registry")
        self.app = build_app(Registry(self.store))
        secret = Tokens(self.store).create("root", "admin")[1]
        self.headers = {"Authorization": f"Bearer {secret}"}
        self.client = TestClient(self.app, headers=self.headers)
        self.client.post("/api/repos/create", json={"name": "ner", "organization": "acme"})
        assert self.commit({"README.md": "# one"}).status_code == 200

    def commit(self, files):
        return self.client.post("/api/models/acme/ner/commit/main", content=commit_body(files))

    def outside(self) -> list[str]:
        """Everything that is not in the registry."""
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return sorted(str(path) for path in paths if path.parts[0] != "registry")


@pytest.fixture
def hub(tmp_path) -> Hub:
    return Hub(tmp_path)


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_parameter_of_any_route_leads_out_of_the_registry(hub, escape):
    raw = escape if "%" in escape else quote(escape, safe="/\\:~")
    headers = [(name.encode(), value.encode()) for name, value in hub.headers.items()]
    tried = 0
    with Wire(hub.app) as wire:
        for route in _routes(hub.app.routes):
            for place in range(route.path.count("{")):
                values = ["acme", "ner", "main", "README.md", "x"]
                values[place] = raw
                methods = route.methods or {"GET"}
                for method in methods - {"HEAD"} if "GET" in methods else methods:  # they share a function
                    answer = wire.send(method, filled(route.path, values).encode(), headers, b"{}")
                    assert answer.status < 500 or answer.status == 501, (method, route.path, values, answer)
                    assert CANARY.encode() not in answer.body
                    assert b"root:x:" not in answer.body
                    tried += 1
    assert tried > 50
    assert hub.outside() == ["canary"]
    assert hub.client.get("/acme/ner/resolve/main/README.md").text == "# one"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:30])
def test_a_commit_of_a_file_outside_of_its_repository_is_refused_whole(hub, path):
    header = {"key": "header", "value": {"summary": "x"}}
    content = base64.b64encode(b"evil").decode()
    for key, value in (
        ("file", {"path": path, "content": content, "encoding": "base64"}),
        ("lfsFile", {"path": path, "algo": "sha256", "oid": "0" * 64, "size": 4}),
    ):
        good = {"key": "file", "value": {"path": "good.md", "content": content, "encoding": "base64"}}
        body = "\n".join(map(json.dumps, [header, good, {"key": key, "value": value}]))
        answer = hub.client.post("/api/models/acme/ner/commit/main", content=body)
        assert 400 <= answer.status_code < 500, answer.text
    assert hub.outside() == ["canary"]
    files = hub.client.get("/api/models/acme/ner/tree/main?recursive=true").json()
    assert [entry["path"] for entry in files] == [".gitattributes", "README.md"]


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "a b", "a\x00", "\u00e9", "x.git", "", ".x", "a" * 200, "con\n"])
def test_a_repository_with_a_name_that_is_none_is_refused(hub, name):
    for body in ({"name": name, "organization": "acme"}, {"name": "x", "organization": name or "a/b"}):
        assert 400 <= hub.client.post("/api/repos/create", json=body).status_code < 500
    moved = hub.client.post("/api/repos/move", json={"fromRepo": "acme/ner", "toRepo": f"acme/{name}"})
    assert 400 <= moved.status_code < 500
    assert hub.outside() == ["canary"]
    assert hub.client.get("/api/models/acme/ner").status_code == 200


def test_every_route_with_a_parameter_is_tried(hub):
    patterns = {route.path for route in _routes(hub.app.routes) if isinstance(route, Route) and "{" in route.path}
    assert len(patterns) > 10


@pytest.mark.parametrize("path", UNWRITABLE)
def test_a_path_that_some_system_cannot_write_is_refused_in_a_sentence(hub, path):
    answer = hub.commit({path: "x"})
    assert (answer.status_code, "cannot be the path of a file: " in answer.json()["error"]) == (422, True)


@pytest.mark.parametrize(("one", "other"), TWINS)
def test_paths_that_are_one_on_some_system_are_refused_at_once_and_one_after_the_other(hub, one, other):
    assert hub.commit({one: "x", other: "y"}).status_code == 400
    assert hub.commit({one: "x"}).status_code == 200
    assert "Rename or delete one of them" in hub.commit({other: "y"}).json()["error"]


def test_other_paths_are_taken(hub):
    files = [
        "config/console.txt",
        "a.b/.c",
        "caf\xe9.md",
        "cafe\u0301s",
        "\u2764\ufe0f.md",
        "a (1)_[x]{y}'!@#$%^&+=,;~.txt",
        "\u65e5\u672c",
    ]
    assert hub.commit(dict.fromkeys(files, "x")).status_code == 200
