"""Documents of a hub with any other bit: no token, no private repository and no address is opened by one, and each is one sentence."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from deltahub.errors import IntegrityError
from deltahub.registry import uploads
from deltahub.registry.gc import collect
from deltahub.registry.hub_records import KEYS, PARTS, REPOSITORIES, TOKENS, UPLOADS, damages
from deltahub.registry.registry import Registry
from deltahub.server import tokens as known_module
from deltahub.server.app import build_app
from deltahub.server.errors import Refusal
from deltahub.server.settings import Settings
from deltahub.server.tokens import Tokens
from deltahub.server.upload_urls import Signer
from deltahub.stores.memory import MemoryStore
from tests.faults.hub_documents import PART, flipped, key_of, replace, store_one_of_each
from tests.server.clients import commit_body

_ONE_OF = 37  # bits that a whole request is made for


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A part of a file."""
    (tmp_path / "part").write_bytes(b"part")
    return tmp_path / "part"


@pytest.fixture
def store(file: Path) -> MemoryStore:
    """One document of each kind, and no delta."""
    return store_one_of_each(MemoryStore(), file)


# ----- tokens -----


@pytest.fixture
def at_once(monkeypatch) -> None:
    """What was read of a token is believed for no time at all."""
    monkeypatch.setattr(known_module, "LIFETIME", 0.0)


def test_a_token_with_any_bit_flipped_gives_no_access_and_a_clear_error(at_once):
    store = MemoryStore()
    token, secret = Tokens(store).create("ada", "admin")
    client = TestClient(build_app(Registry(store), Settings()), headers={"Authorization": f"Bearer {secret}"})
    key = f"{TOKENS.prefix}{token.id}.json"
    data = store.read(key)
    assert client.get("/metrics").status_code == 200
    for other in flipped(data, _ONE_OF):
        replace(store, key, other)
        answer = client.get("/api/models")
        assert answer.status_code == 500
        assert answer.json()["error"].startswith(
            "The hub's record of the token is damaged. Ask the administrator of this hub"
        )
    replace(store, key, data)
    assert client.get("/metrics").status_code == 200


def test_the_document_of_an_administrator_in_another_token_s_place_grants_nothing(at_once):
    store = MemoryStore()
    tokens = Tokens(store)
    reader, secret = tokens.create("reader", "read")
    root, _ = tokens.create("root", "admin")
    replace(store, f"{TOKENS.prefix}{reader.id}.json", store.read(f"{TOKENS.prefix}{root.id}.json"))
    client = TestClient(build_app(Registry(store), Settings()), headers={"Authorization": f"Bearer {secret}"})
    assert client.get("/api/models").status_code == 500


def test_a_damaged_token_hides_and_blocks_no_other(caplog):
    store = MemoryStore()
    tokens = Tokens(store)
    damaged, _ = tokens.create("ada", "read")
    tokens.create("bob", "read")
    key = f"{TOKENS.prefix}{damaged.id}.json"
    replace(store, key, b"{}")
    assert [token.name for token in tokens.all()] == ["bob"]
    assert f"A token cannot be listed: {key} is damaged" in caplog.text
    assert [token.name for token in tokens.revoke("bob")] == ["bob"]
    assert tokens.create("bob", "write")[0].name == "bob"


# ----- repositories -----


class Hub:
    """A hub with a public repository and a private one, and whoever made them."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.app = build_app(Registry(self.store), Settings(upload_mode="lfs"))
        self.owner = self.client("bot", "write", ["acme"])
        for name, private in (("ner", False), ("plan", True)):
            made = {"name": name, "organization": "acme", "private": private}
            assert self.owner.post("/api/repos/create", json=made).status_code == 200
            body = commit_body({"README.md": f"# {name}"})
            assert self.owner.post(f"/api/models/acme/{name}/commit/main", content=body).status_code == 200

    def client(self, *token) -> TestClient:
        """A caller with a new token; without one if nothing is said of it."""
        secret = Tokens(self.store).create(*token)[1] if token else ""
        return TestClient(self.app, headers={"Authorization": f"Bearer {secret}"} if token else {})

    def damaged(self, name: str, data: bytes) -> None:
        """Damage the record of a repository."""
        replace(self.store, f"{REPOSITORIES.prefix}acme/{name}.json", data)


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture(params=["no private", "flipped", "the public one"])
def opened(hub, request) -> Hub:
    """A hub whose private repository would be public by what its record says now, or says nothing."""
    record = hub.store.read(f"{REPOSITORIES.prefix}acme/plan.json")
    public = hub.store.read(f"{REPOSITORIES.prefix}acme/ner.json")
    assert b'"private":true' in record
    data = {
        "no private": record.replace(b'"private":true', b'"private":false'),
        "flipped": next(flipped(record)),
        "the public one": public,
    }
    hub.damaged("plan", data[request.param])
    return hub


@pytest.mark.parametrize("token", [(), ("r", "read", ["lab"])], ids=["stranger", "other"])
def test_a_private_repository_whose_record_is_damaged_is_answered_as_one_that_is_not_there(opened, token):
    outsider = opened.client(*token)
    for address in ("/api/models/{}", "/{}/resolve/main/README.md", "/api/models/{}/tree/main", "/{}"):
        private, missing = (outsider.get(address.format(name)) for name in ("acme/plan", "acme/none"))
        assert private.status_code == missing.status_code in (401, 404)
        assert private.text.replace("acme/plan", "acme/none") == missing.text


def test_a_repository_whose_record_is_damaged_is_in_no_list_of_strangers_and_hides_no_other(opened, caplog):
    assert [model["id"] for model in opened.client().get("/api/models").json()] == ["acme/ner"]
    page = opened.client().get("/").text
    assert "acme/ner" in page
    assert "acme/plan" not in page
    assert "A repository cannot be listed: hub/repos/acme/plan.json is damaged" in caplog.text
    theirs = opened.owner.get("/api/models").json()
    assert {model["id"]: model["private"] for model in theirs} == {"acme/ner": False, "acme/plan": True}


def test_authorised_callers_see_the_damage_and_the_log_names_the_document(opened, caplog):
    answer = opened.owner.get("/api/models/acme/plan")
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("The stored data is damaged.")
    assert "hub/repos/acme/plan.json is damaged: expected the record of a repository" in caplog.text
    changed = opened.owner.put("/api/models/acme/plan/settings", json={"private": False})
    assert changed.status_code == 500


# ----- uploads -----


@pytest.mark.parametrize("data", [b"", b"{}", None], ids=["empty", "other", "flipped"])
def test_a_damaged_key_signs_nothing_and_makes_no_address_good(data):
    store, facts = MemoryStore(), {"oid": "0" * 64}
    query = dict(pair.split("=") for pair in Signer(store).signed("", facts).removeprefix("?").split("&"))
    Signer(store).require(query, facts)
    key = key_of(store, KEYS)
    replace(store, key, next(flipped(store.read(key))) if data is None else data)
    with pytest.raises(IntegrityError, match=r"^hub/keys/uploads\.json is damaged"):
        Signer(store).require(query, facts)
    with pytest.raises(IntegrityError, match="Delete it: a new one is made"):
        Signer(store).signed("", facts)
    store.delete(key)
    with pytest.raises(Refusal, match="was not issued by this hub"):
        Signer(store).require(query, facts)


def test_a_file_whose_record_is_damaged_is_sent_again(hub):
    data = b"weights" * 100
    oid = hashlib.sha256(data).hexdigest()
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": len(data)}]}

    def wanted() -> str | None:
        (said,) = hub.owner.post("/acme/ner.git/info/lfs/objects/batch", json=batch).json()["objects"]
        return said["actions"]["upload"]["href"] if "actions" in said else None

    def committed() -> int:
        file = {"path": "w.dat", "algo": "sha256", "oid": oid, "size": len(data)}
        lines = [{"key": "header", "value": {"summary": "w"}}, {"key": "lfsFile", "value": file}]
        body = "\n".join(map(json.dumps, lines))
        return hub.owner.post("/api/models/acme/ner/commit/main", content=body).status_code

    assert hub.client().put(wanted(), content=data).status_code == 200
    assert wanted() is None
    key = key_of(hub.store, UPLOADS)
    record = hub.store.read(key)
    replace(hub.store, key, record.replace(b'"size":700', b'"size":701'))
    assert committed() == 400
    assert hub.client().put(wanted(), content=data).status_code == 200
    assert committed() == 200


def test_a_part_whose_record_is_damaged_is_sent_again(store, file):
    found = uploads.part(store, *PART)
    assert found
    key = key_of(store, PARTS)
    replace(store, key, store.read(key).replace(found.encode(), b"0" * 64))
    assert uploads.part(store, *PART) is None
    uploads.keep_part(store, *PART, found, file, "ada")
    assert uploads.part(store, *PART) == found


def test_a_collection_removes_damaged_records_of_uploads(store):
    for kind in (UPLOADS, PARTS):
        for key in [key for key, _ in store.keys(kind.prefix)]:
            replace(store, key, base64.b64encode(store.read(key)))
    collect(Registry(store), timedelta(days=30))
    assert [key for kind in (UPLOADS, PARTS) for key, _ in store.keys(kind.prefix)] == []
    assert list(damages(store)) == []
