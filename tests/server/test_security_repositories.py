"""Repositories and those who may not touch them: private ones, other namespaces, read tokens, pickles; and what errors give away."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deltahub.errors import InUseError
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.registry.rename import rename
from deltahub.registry.search.index import Index
from deltahub.server.app import build_app
from deltahub.server.records import Records
from deltahub.server.settings import Settings
from deltahub.server.tokens import Tokens
from deltahub.stores.base import object_key
from deltahub.stores.local import LocalStore
from tests.server.clients import commit_body

pytestmark = pytest.mark.slow  # every route with every token

PRIVATE, MISSING = "acme/secret-plan", "acme/nothing-plan"
READS = [
    ("GET", "/api/models/{}"),
    ("GET", "/api/models/{}/revision/main"),
    ("GET", "/api/models/{}/tree/main?recursive=true"),
    ("GET", "/api/models/{}/refs"),
    ("GET", "/api/models/{}/commits/main"),
    ("POST", "/api/models/{}/paths-info/main"),
    ("GET", "/{}/resolve/main/README.md"),
    ("HEAD", "/{}/resolve/main/README.md"),
    ("GET", "/{}/raw/main/README.md"),
    ("GET", "/{}"),
]
WRITES = [
    ("POST", "/api/models/{}/commit/main", commit_body({"evil.md": "evil"})),
    ("POST", "/api/models/{}/preupload/main", b'{"files": []}'),
    ("POST", "/api/models/{}/tag/main", b'{"tag": "evil"}'),
    ("DELETE", "/api/models/{}/tag/keep", b""),
    ("POST", "/api/models/{}/branch/evil", b"{}"),
    ("DELETE", "/api/models/{}/branch/side", b""),
    ("PUT", "/api/models/{}/settings", b'{"visibility": "private"}'),
    ("POST", "/{}.git/info/lfs/objects/batch", json.dumps({"operation": "upload", "objects": []}).encode()),
    ("POST", "/{}.git/info/lfs/verify", json.dumps({"oid": "0" * 64, "size": 1}).encode()),
]


class Hub:
    """A hub with a public and a private repository of acme."""

    def __init__(self, folder: Path, **settings) -> None:
        self.store = LocalStore(folder / "where-the-hub-keeps-things")
        self.tokens = Tokens(self.store)
        self.app = build_app(Registry(self.store), Settings(**settings))
        self.acme = self.client("acme-bot", "write", ["acme"])
        for name, visibility in (("ner", "public"), ("secret-plan", "private")):
            made = {"name": name, "organization": "acme", "visibility": visibility}
            assert self.acme.post("/api/repos/create", json=made).status_code == 200
            path = f"/api/models/acme/{name}"
            assert (
                self.acme.post(f"{path}/commit/main", content=commit_body({"README.md": f"# {name}"})).status_code
                == 200
            )
            assert self.acme.post(f"{path}/tag/main", json={"tag": "keep"}).is_success
            assert self.acme.post(f"{path}/branch/side", json={}).is_success

    def client(self, name: str = "", scope: str = "read", namespaces=()) -> TestClient:
        """A caller with a new token; without one if there is no name."""
        if not name:
            return TestClient(self.app)
        secret = self.tokens.create(name, scope, namespaces)[1]
        return TestClient(self.app, headers={"Authorization": f"Bearer {secret}"})

    def state(self, repository: str) -> tuple[object, ...]:
        """All that a change would change."""
        at = f"/api/models/{repository}"
        return tuple(self.acme.get(f"{at}{what}").json() for what in ("", "/refs", "/commits/main", "/tree/main"))


@pytest.fixture
def hub(tmp_path) -> Hub:
    return Hub(tmp_path)


@pytest.fixture(params=["stranger", "reader", "writer"])
def outsider(hub, request) -> TestClient:
    """Somebody who may not see what is private in acme."""
    callers = {"stranger": (), "reader": ("r", "read", ["lab"]), "writer": ("w", "write", ["lab"])}
    return hub.client(*callers[request.param])


def test_a_private_repository_is_answered_like_a_missing_one(outsider):
    def told(answer) -> dict[str, str]:
        own = ("x-request-id", "content-length")
        return {name: value.replace(PRIVATE, MISSING) for name, value in answer.headers.items() if name not in own}

    for method, address in READS:
        private = outsider.request(method, address.format(PRIVATE))
        missing = outsider.request(method, address.format(MISSING))
        assert private.status_code == missing.status_code, (method, address)
        assert private.status_code in (401, 404), (method, address)
        assert private.text.replace(PRIVATE, MISSING) == missing.text, (method, address)
        assert told(private) == told(missing), (method, address)


def test_a_private_repository_is_in_no_list(outsider):
    for address in ("/api/models", "/api/models?search=secret", "/api/models?author=acme", "/", "/?q=secret"):
        answer = outsider.get(address)
        assert answer.status_code == 200, address
        assert "secret-plan" not in answer.text.replace("q=secret", ""), address


def test_a_name_that_is_almost_a_private_one_is_not_corrected(outsider):
    for address in ("/api/models/acme/secret-plam", "/acme/secret-pla/resolve/main/x", "/acme/secret-plam"):
        assert "secret-plan" not in outsider.get(address).text


def test_callers_cannot_change_repositories_of_others(hub, outsider):
    for repository in ("acme/ner", PRIVATE):
        before = hub.state(repository)
        for method, address, body in WRITES:
            answer = outsider.request(method, address.format(repository), content=body)
            assert answer.status_code in (401, 403), (method, address)
            assert hub.state(repository) == before, (method, address)


def test_a_token_that_reads_does_not_write_in_its_own_namespace_either(hub):
    before, reader = hub.state("acme/ner"), hub.client("own", "read", ["acme"])
    for method, address, body in WRITES:
        assert reader.request(method, address.format("acme/ner"), content=body).status_code == 403, (method, address)
        assert hub.state("acme/ner") == before, (method, address)


def test_callers_cannot_create_delete_or_move_in_namespaces_of_others(hub, outsider):
    before = hub.state("acme/ner")
    for method, address, body in (
        ("POST", "/api/repos/create", {"name": "evil", "organization": "acme"}),
        ("DELETE", "/api/repos/delete", {"name": "ner", "organization": "acme"}),
        ("POST", "/api/repos/move", {"fromRepo": "acme/ner", "toRepo": "lab/ner"}),
        ("POST", "/api/repos/move", {"fromRepo": "lab/mine", "toRepo": "acme/mine"}),
    ):
        assert outsider.request(method, address, json=body).status_code in (401, 403, 404)
    assert hub.state("acme/ner") == before
    assert hub.acme.get("/api/models/acme/evil").status_code == 404


def test_a_moved_repository_takes_its_privacy_with_it(hub):
    hub.acme.post("/api/repos/move", json={"fromRepo": PRIVATE, "toRepo": "acme/hidden"})
    for name in (PRIVATE, "acme/hidden"):
        assert hub.client().get(f"/api/models/{name}").status_code == 401
        assert hub.acme.get(f"/api/models/{name}").status_code == 200


# ----- bytes of others -----


def test_a_commit_cannot_take_over_bytes_by_knowing_their_digest(hub):
    digest = hashlib.sha256(b"# secret-plan").hexdigest()
    assert (hub.store.root / object_key(digest)).exists()
    thief = hub.client("thief", "write", ["lab"])
    thief.post("/api/repos/create", json={"name": "loot", "organization": "lab"})
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "lfsFile", "value": {"path": "loot.md", "algo": "sha256", "oid": digest, "size": 13}},
    ]
    answer = thief.post("/api/models/lab/loot/commit/main", content="\n".join(map(json.dumps, lines)))
    assert answer.status_code == 400
    assert "not uploaded" in answer.json()["error"]
    batch = {"operation": "download", "objects": [{"oid": digest, "size": 13}]}
    told = thief.post("/lab/loot.git/info/lfs/objects/batch", json=batch).json()["objects"][0]
    assert told["error"]["code"] == 404
    batch["operation"] = "upload"
    told = thief.post("/lab/loot.git/info/lfs/objects/batch", json=batch).json()["objects"][0]
    assert "actions" in told  # as if nobody had it


# ----- pickles -----


def upload(hub: Hub, path: str, data: bytes):
    """Send a file as clients with git-lfs do, and commit it."""
    oid = hashlib.sha256(data).hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(data)}]}
    found = hub.acme.post("/acme/ner.git/info/lfs/objects/batch", json=batch).json()["objects"][0]
    if "actions" in found:
        assert hub.acme.put(found["actions"]["upload"]["href"], content=data).status_code == 200
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": oid, "size": len(data)}},
    ]
    return hub.acme.post("/api/models/acme/ner/commit/main", content="\n".join(map(json.dumps, lines)))


def inline(hub: Hub, path: str, data: bytes):
    """Send a file inside of a commit."""
    content = base64.b64encode(data).decode()
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}},
    ]
    return hub.acme.post("/api/models/acme/ner/commit/main", content="\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("send", [upload, inline])
@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("pytorch_model.pt", b"harmless"),
        ("pytorch_model.bin", pickle.dumps(1, 0)),
        ("a/weights.safetensors", pickle.dumps([1])),
    ],
)
def test_a_pickle_is_refused_by_its_name_and_by_its_bytes_however_it_comes(hub, send, path, data):
    before = hub.state("acme/ner")
    answer = send(hub, path, data)
    assert answer.status_code == 403
    assert "safetensors" in answer.json()["error"]
    assert hub.state("acme/ner") == before


def test_pickles_are_refused_before_a_client_uploads_them(hub):
    for path, data in (("x.pt", b""), ("x.safetensors", pickle.dumps([1]))):
        file = {"path": path, "size": 9, "sample": base64.b64encode(data).decode()}
        answer = hub.acme.post("/api/models/acme/ner/preupload/main", json={"files": [file]})
        assert (answer.status_code, "pickle" in answer.json()["error"]) == (403, True)


def test_a_namespace_that_takes_pickles_takes_them(tmp_path):
    hub = Hub(tmp_path, pickle_namespaces=("acme",))
    assert upload(hub, "pytorch_model.bin", pickle.dumps([1])).status_code == 200
    assert inline(hub, "training_args.bin", pickle.dumps([2])).status_code == 200


# ----- what is pinned, and what changes while it is looked at -----


def test_nothing_else_is_called_as_a_commit_is(hub):
    first = hub.acme.get("/api/models/acme/ner").json()["sha"]
    assert inline(hub, "README.md", b"# another").status_code == 200
    assert hub.acme.post("/api/models/acme/ner/tag/main", json={"tag": first}).status_code == 400
    assert hub.acme.post(f"/api/models/acme/ner/branch/{first}", json={}).status_code == 400
    registry = Registry(hub.store)
    registry.update(
        "acme/ner", lambda document: document.with_alias(first, document.latest, "2026-01-01T00:00:00Z", "x")
    )
    assert hub.acme.get(f"/acme/ner/resolve/{first}/README.md").text == "# ner"


def test_a_private_repository_stays_private_during_creation_and_deletion(hub, monkeypatch):
    stranger, reads = hub.client(), {"deleted": Registry.read, "made": Records.find}
    made = {"name": "secret-new", "organization": "acme", "visibility": "private"}

    def delete() -> None:
        body = {"name": "secret-plan", "organization": "acme"}
        assert hub.acme.request("DELETE", "/api/repos/delete", json=body).status_code == 200

    def make() -> None:
        assert hub.acme.post("/api/repos/create", json=made).status_code == 200
        body = commit_body({"README.md": "# new"})
        assert hub.acme.post("/api/models/acme/secret-new/commit/main", content=body).status_code == 200

    for name, happens, owner, method in (
        ("secret-plan", delete, Registry, "read"),
        ("secret-new", make, Records, "find"),
    ):
        read = reads["deleted" if owner is Registry else "made"]

        def meanwhile(self, path, read=read, happens=happens, owner=owner, method=method):
            found = read(self, path)
            monkeypatch.setattr(owner, method, read)
            happens()
            return found

        monkeypatch.setattr(owner, method, meanwhile)
        assert stranger.get(f"/acme/{name}/resolve/main/README.md").status_code == 401


def test_a_successor_of_a_deleted_private_repository_reveals_nothing(hub):
    registry, name = Registry(hub.store), {"name": "secret-plan", "organization": "acme"}
    rename(registry, Reference.parse(PRIVATE), Reference.parse("acme/hidden-plan"))
    for path in ("secret-message", "secret-customer"):
        assert hub.acme.post("/api/models/acme/hidden-plan/tag/main", json={"tag": path}).is_success
    rename(registry, Reference.parse("acme/hidden-plan"), Reference.parse(PRIVATE))
    digests = {entry.digest for entry in registry.document(PRIVATE).versions.values()}
    assert hub.acme.request("DELETE", "/api/repos/delete", json=name).status_code == 200
    for kept in ("acme/secret-plan", "acme/hidden-plan"):
        data = hub.store.read(f"refs/{kept}.json")
        assert not any(told in data for told in (b"acme-bot", b"secret-message", b"secret-customer", b"keep", b"side"))

    heir = hub.client("heir", "write", ["acme"])
    assert heir.post("/api/repos/create", json=name).status_code == 200
    assert heir.get(f"/api/models/{PRIVATE}/refs").json()["tags"] == []
    content = commit_body({"README.md": "# Another plan"})
    assert heir.post(f"/api/models/{PRIVATE}/commit/main", content=content).is_success
    stranger = hub.client()
    page = stranger.get(f"/{PRIVATE}/versions").text
    assert "heir" in page
    assert not any(told in page for told in ("acme-bot", "secret-message", "<s>v1</s>", *digests))
    commits = stranger.get(f"/api/models/{PRIVATE}/commits/main").json()
    assert [commit["title"] for commit in commits] == ["a commit", "initial commit"]
    assert [*registry.document(PRIVATE).versions] == ["v2"]  # no version gets the number of another one
    assert stranger.get(f"/{PRIVATE}/resolve/v1/README.md").status_code == 404
    assert "acme-bot" not in stranger.get(f"/{PRIVATE}/resolve/v1/README.md").text


def test_the_history_of_a_deleted_public_repository_is_still_shown(hub):
    name = {"name": "ner", "organization": "acme"}
    assert hub.acme.request("DELETE", "/api/repos/delete", json=name).status_code == 200
    assert hub.acme.post("/api/repos/create", json=name).status_code == 200
    assert hub.acme.post("/api/models/acme/ner/commit/main", content=commit_body({"a.md": "b"})).is_success
    assert "the repository was deleted" in hub.client().get("/acme/ner/versions").text


@pytest.mark.parametrize("address", ["/", "/api/models"])
def test_a_private_repository_that_is_made_while_a_list_is_read_is_not_in_it(hub, monkeypatch, address):
    search = Index.search
    made = {"name": "secret-new", "organization": "acme", "visibility": "private"}

    def late(self, *arguments, **options):
        monkeypatch.setattr(Index, "search", search)
        assert hub.acme.post("/api/repos/create", json=made).status_code == 200
        body = commit_body({"README.md": "# new"})
        assert hub.acme.post("/api/models/acme/secret-new/commit/main", content=body).status_code == 200
        return search(self, *arguments, **options)

    monkeypatch.setattr(Index, "search", late)
    answer = hub.client().get(address)
    assert answer.status_code == 200
    assert "acme/ner" in answer.text
    assert "secret-new" not in answer.text


def test_a_private_repository_stays_private_when_renamed_directly_and_back(hub):
    registry, stranger = Registry(hub.store), hub.client()
    names = ["acme/secret-plan", "acme/hidden-plan", "acme/secret-plan"]
    for old, new in pairwise(names):
        rename(registry, Reference.parse(old), Reference.parse(new))
        for name in names:
            assert stranger.get(f"/{name}/resolve/main/README.md").status_code == 401
        assert "-plan" not in stranger.get("/api/models").text
        assert [found["id"] for found in hub.acme.get("/api/models?search=plan").json()] == [new]
    opened = hub.acme.put("/api/models/acme/secret-plan/settings", json={"visibility": "public"})
    assert opened.status_code == 200
    rename(registry, Reference.parse("acme/secret-plan"), Reference.parse("acme/hidden-plan"))
    assert stranger.get("/acme/hidden-plan/resolve/main/README.md").text == "# secret-plan"


def test_a_delta_does_not_take_the_name_of_another_repository(hub):
    made = {"name": "mine", "organization": "acme", "visibility": "private"}
    assert hub.acme.post("/api/repos/create", json=made).status_code == 200
    with pytest.raises(InUseError, match="acme/mine is another repository of a hub"):
        rename(Registry(hub.store), Reference.parse("acme/ner"), Reference.parse("acme/mine"))
    assert hub.client().get("/acme/ner/resolve/main/README.md").status_code == 200


# ----- what errors give away -----


def test_no_answer_tells_where_the_hub_keeps_its_bytes(hub):
    entry = next(iter(hub.store.root.rglob("refs/acme/ner.json")))
    answers = [
        hub.acme.request(method, address.format(name)) for method, address in READS for name in ("acme/ner", MISSING)
    ]
    answers += [hub.acme.request(method, address.format(MISSING), content=body) for method, address, body in WRITES]
    digest = hashlib.sha256(b"# ner").hexdigest()
    (hub.store.root / object_key(digest)).unlink()
    answers.append(hub.acme.get("/acme/ner/resolve/main/README.md"))
    assert answers[-1].status_code == 500
    entry.write_bytes(b"{}")
    answers.append(hub.acme.get("/api/models/acme/ner"))
    assert answers[-1].status_code == 500
    for answer in answers:
        assert "where-the-hub-keeps-things" not in answer.text
        assert "where-the-hub-keeps-things" not in str(answer.headers)
        assert "Traceback" not in answer.text


def test_the_hub_s_own_documents_are_no_files_of_any_repository(hub):
    for path in ("hub/tokens", "hub/keys/uploads.json", "refs/acme/ner.json", "../hub/keys/uploads.json"):
        assert hub.client("root", "admin").get(f"/acme/ner/resolve/main/{path}").status_code == 404
        hub.tokens.revoke("root")
