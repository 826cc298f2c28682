"""Large files by hand, as git-lfs sends them: signed addresses that are good for one thing, for a time."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime, timedelta

import pytest
import requests

from deltahub.registry.gc import collect
from deltahub.server import upload_urls
from deltahub.server.routes import lfs
from deltahub.server.tokens import Tokens

pytestmark = pytest.mark.slow  # a hub and files of many parts

REPO = "acme/sst2"
DATA = hashlib.shake_256(b"large").digest(250_000)
OID = hashlib.sha256(DATA).hexdigest()


class Caller:
    """Sends requests with a token."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.headers = url, {"Authorization": f"Bearer {token}"}

    def batch(self, *objects: tuple[str, int], repo: str = REPO, **body: object) -> requests.Response:
        listed = [{"oid": oid, "size": size} for oid, size in objects]
        given = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": listed, **body}
        return requests.post(
            f"{self.url}/{repo}.git/info/lfs/objects/batch", json=given, headers=self.headers, timeout=30
        )

    def address(self, oid: str = OID, size: int = len(DATA), **options: object) -> dict:
        return self.batch((oid, size), **options).json()["objects"][0]["actions"]["upload"]

    def verify(self, oid: str = OID, size: int = len(DATA)) -> int:
        body = {"oid": oid, "size": size}
        url = f"{self.url}/{REPO}.git/info/lfs/verify"
        return requests.post(url, json=body, headers=self.headers, timeout=30).status_code

    def commit(self, oid: str = OID, repo: str = REPO, **value: object) -> requests.Response:
        lines = [
            {"key": "header", "value": {"summary": "large"}},
            {"key": "lfsFile", "value": {"path": "large.txt", "algo": "sha256", "oid": oid, **value}},
        ]
        body = "\n".join(map(json.dumps, lines))
        url = f"{self.url}/api/models/{repo}/commit/main"
        return requests.post(url, data=body, headers=self.headers, timeout=30)


def put(href: str, data: bytes = DATA) -> requests.Response:
    return requests.put(href, data=data, timeout=30)


@pytest.fixture
def caller(hub, api) -> Caller:
    api.create_repo(REPO)
    api.create_repo("acme/other")
    return Caller(hub.url, hub.token())


def test_a_file_is_sent_checked_named_by_a_commit_and_fetched(caller):
    answer = caller.batch((OID, len(DATA)))
    assert answer.headers["Content-Type"] == "application/vnd.git-lfs+json"
    assert answer.json()["transfer"] == "basic"
    assert caller.verify() == 404
    assert put(answer.json()["objects"][0]["actions"]["upload"]["href"]).status_code == 200
    assert caller.verify() == 200
    assert caller.verify(size=1) == 404
    assert caller.commit(size=len(DATA)).status_code == 200

    found = caller.batch((OID, len(DATA)), operation="download").json()["objects"][0]
    assert requests.get(found["actions"]["download"]["href"], timeout=30).content == DATA


def test_files_in_the_repository_are_not_sent_again_and_no_other_is_revealed(caller):
    put(caller.address()["href"])
    assert "actions" not in caller.batch((OID, len(DATA))).json()["objects"][0]
    assert "actions" in caller.batch((OID, len(DATA)), repo="acme/other").json()["objects"][0]
    caller.commit()
    assert "actions" not in caller.batch((OID, len(DATA))).json()["objects"][0]
    assert "actions" in caller.batch((OID, len(DATA)), repo="acme/other").json()["objects"][0]


def test_a_commit_names_nothing_that_was_not_sent_to_its_repository(caller):
    put(caller.address()["href"])
    refused = caller.commit(repo="acme/other")

    assert (refused.status_code, "were not uploaded to acme/other" in refused.json()["error"]) == (400, True)
    assert caller.commit(oid="0" * 64).status_code == 400
    assert caller.commit(size=1).status_code == 400


def test_other_bytes_than_announced_are_refused_and_not_kept(caller, hub):
    for data in (DATA[:-1] + b"?", DATA[:-1], DATA + b"?"):
        assert put(caller.address()["href"], data).status_code == 400
    assert caller.verify() == 404
    assert list(hub.registry.store.keys("objects/")) == []


def test_a_signed_address_is_valid_only_for_its_file(caller):
    href = caller.address()["href"]
    other = hashlib.sha256(b"other").hexdigest()
    changed = [
        href.replace("/acme/sst2.git", "/acme/other.git"),
        href.replace(OID, other),
        href.replace(f"size={len(DATA)}", "size=5"),
        re.sub(r"expires=\d+", "expires=99999999999", href),
        re.sub(r"signature=\w+", "signature=00", href),
        re.sub(r"signature=\w+", "signature=%C3%A9", href),
        href.partition("?")[0],
    ]
    assert {put(address).status_code for address in changed} == {403}
    assert put(href).status_code == 200


def test_an_address_expires(caller, monkeypatch):
    monkeypatch.setattr(upload_urls, "LIFETIME", -1)
    answer = put(caller.address()["href"])

    assert (answer.status_code, "has expired" in answer.json()["error"]) == (403, True)


class Owner:
    """A caller with a token of its own and a repository in which there is a file, and addresses for another one and for this one."""

    def __init__(self, hub) -> None:
        self.caller = Caller(hub.url, hub.token("write", "acme", name="owner"))
        put(self.caller.address()["href"])
        assert self.caller.commit().status_code == 200
        found = self.caller.batch((OID, len(DATA)), operation="download").json()["objects"][0]
        self.addresses = {
            "GET": found["actions"]["download"]["href"],
            "PUT": self.caller.address(hashlib.sha256(b"new").hexdigest(), 3)["href"],
        }

    def statuses(self) -> list[int]:
        """What the addresses are good for."""
        return [
            requests.request(kind, href, data=b"new", timeout=30).status_code for kind, href in self.addresses.items()
        ]


@pytest.mark.parametrize("what", ["token", "repository", "name", "successor", "nothing"])
def test_an_address_is_good_only_as_long_as_its_token_and_its_repository(caller, hub, api, what, monkeypatch):
    owner = Owner(hub)
    if what == "token":
        Tokens(hub.registry.store).revoke("owner")
    elif what == "name":
        api.move_repo(REPO, "acme/renamed")
    elif what != "nothing":
        api.delete_repo(REPO)
    if what == "successor":
        monkeypatch.setattr("deltahub.registry.stamps.now", lambda: "2030-01-01T00:00:00Z")
        api.create_repo(REPO)
    assert [status < 400 for status in owner.statuses()] == [what == "nothing"] * 2


def test_an_address_of_a_private_repository_is_good_for_whom_it_was_made(caller, hub, api):
    api.update_repo_settings(REPO, private=True)
    assert Owner(hub).statuses() == [200, 200]


def test_uploads_to_a_deleted_repository_are_not_in_its_successor(caller, api):
    put(caller.address()["href"])
    api.delete_repo(REPO)
    api.create_repo(REPO)
    assert (caller.verify(), caller.commit().status_code) == (404, 400)


def test_an_address_for_a_download_lives_for_minutes(caller, hub):
    expires = re.search(r"expires=(\d+)", Owner(hub).addresses["GET"])[1]
    assert int(expires) - datetime.now(UTC).timestamp() <= 600


def test_every_process_of_a_hub_takes_the_addresses_of_the_others(caller, hub):
    from tests.hub_server import hub_server

    with hub_server(hub.registry, hub.settings) as other:
        assert put(caller.address()["href"].replace(hub.url, other.url)).status_code == 200
    assert caller.verify() == 200


@pytest.fixture
def parts(monkeypatch) -> None:
    monkeypatch.setattr(lfs, "MULTIPART_FROM", 100_000)
    monkeypatch.setattr(lfs, "PART", 100_000)


def sent(header: dict[str, str], data: bytes = DATA) -> list[int]:
    size = int(header["chunk_size"])
    numbers = sorted(int(key) for key in header if key.isdigit())
    return [put(header[str(n)], data[(n - 1) * size : n * size]).status_code for n in numbers]


def test_a_file_in_parts_is_put_together_when_all_are_there(caller, parts, hub):
    action = caller.address()
    header = action["header"]
    body = {"oid": OID, "parts": []}
    assert requests.post(action["href"], json=body, timeout=30).status_code == 400  # nothing was sent yet
    assert put(header["2"], b"short").status_code == 400
    assert sent(header) == [200, 200, 200]
    assert sent(header) == [200, 200, 200]  # sent again, after a lost answer
    assert requests.post(action["href"], json=body, timeout=30).status_code == 200
    assert caller.verify() == 200
    assert list(hub.registry.store.keys("hub/parts/")) == []
    assert caller.commit().status_code == 200
    assert list(hub.registry.store.keys("hub/uploads/")) == []


def test_parts_of_other_bytes_are_not_put_together(caller, parts):
    action = caller.address()
    assert sent(action["header"], DATA[::-1]) == [200, 200, 200]
    assert requests.post(action["href"], json={}, timeout=30).status_code == 400
    assert caller.verify() == 404


def test_a_client_that_knows_no_parts_sends_the_whole(caller, parts):
    answer = caller.batch((OID, len(DATA)), transfers=["basic"]).json()
    assert (answer["transfer"], "header" in answer["objects"][0]["actions"]["upload"]) == ("basic", False)


def test_uncommitted_uploads_are_kept_for_the_grace_period(caller, hub, parts):
    put(caller.address(transfers=["basic"])["href"])
    for _ in range(3):
        assert collect(hub.registry, timedelta(minutes=1)).freed == {}
    assert caller.commit().status_code == 200

    other = b"never committed"
    oid = hashlib.sha256(other).hexdigest()
    put(caller.address(oid, len(other))["href"], other)

    large = hashlib.shake_256(b"parts").digest(250_000)
    oid_of_large = hashlib.sha256(large).hexdigest()
    assert sent(caller.address(oid_of_large)["header"], large) == [200, 200, 200]

    freed = collect(hub.registry, timedelta(0)).freed
    assert (len(freed), oid in freed) == (4, True)
    assert [key for prefix in ("hub/uploads/", "hub/parts/") for key, _ in hub.registry.store.keys(prefix)] == []


@pytest.mark.parametrize(
    "body",
    [
        {"operation": "steal"},
        {"objects": "all"},
        {"objects": [{"oid": "../x", "size": 1}]},
        {"objects": [{"oid": OID, "size": -1}]},
        {"objects": [{"oid": OID, "size": True}]},
        {"objects": [7]},
        {"hash_algo": "md5"},
        {"transfers": "basic", "objects": []},
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(caller, body):
    assert caller.batch((OID, 1), **body).status_code in (400, 409)


def test_a_file_that_is_too_large_has_an_error_of_its_own(caller):
    found = caller.batch((OID, 6 << 30)).json()["objects"][0]
    assert found["error"]["code"] == 413
