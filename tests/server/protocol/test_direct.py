"""Large files that clients fetch from the bucket of the registry, and send to it, at signed URLs of its server."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta

import pytest
import requests

from deltahub.registry.direct_uploads import INCOMING
from deltahub.registry.gc import collect
from deltahub.registry.registry import Registry
from deltahub.server.routes import downloads
from deltahub.server.settings import Settings
from deltahub.stores.base import object_key
from deltahub.stores.bucket_store import BucketStore
from tests.hub_server import HubServer, hub_server
from tests.s3_servers import QUICK
from tests.server.protocol.test_large_files import DATA, OID, REPO, Caller, put

pytestmark = pytest.mark.slow  # an S3 server


@pytest.fixture
def store(moto, s3_keys) -> BucketStore:
    return BucketStore(moto.bucket(), QUICK)


@pytest.fixture
def hub(store, monkeypatch) -> Iterator[HubServer]:
    monkeypatch.setattr(downloads, "DIRECT_FROM", 1000)
    settings = Settings(upload_mode="lfs", direct=True, rate=0)
    with hub_server(Registry(store, "served"), settings) as running:
        yield running


@pytest.fixture
def caller(hub, api) -> Caller:
    api.create_repo(REPO)
    return Caller(hub.url, hub.token())


def actions(caller: Caller) -> dict:
    return caller.batch((OID, len(DATA)), transfers=["basic"]).json()["objects"][0]["actions"]


def adopted(caller: Caller, found: dict) -> requests.Response:
    body = {"oid": OID, "size": len(DATA)}
    return requests.post(found["verify"]["href"], json=body, headers=caller.headers, timeout=30)


def test_a_file_is_sent_to_the_bucket_verified_committed_and_fetched_from_it(caller, hub, store, moto):
    found = actions(caller)
    assert found["upload"]["href"].startswith(f"{moto.url}/")
    assert put(found["upload"]["href"]).status_code == 200
    assert caller.commit(size=len(DATA)).status_code == 400  # before it is verified
    assert [adopted(caller, found).status_code for _ in range(2)] == [200, 200]  # the answer to the first may be lost
    assert caller.commit(size=len(DATA)).status_code == 200
    assert list(store.keys(INCOMING)) == []

    url = f"{hub.url}/{REPO}/resolve/main/large.txt"
    for method in ("HEAD", "GET"):
        there = requests.request(method, url, headers=caller.headers, allow_redirects=False, timeout=30)
        assert (there.status_code, there.headers["X-Linked-Etag"]) == (302, f'"{OID}"')
        assert there.headers["X-Linked-Size"] == str(len(DATA))
    assert requests.get(there.headers["Location"], timeout=30).content == DATA
    assert requests.get(url, headers={**caller.headers, "Range": "bytes=5-9"}, timeout=30).content == DATA[5:10]


def test_small_files_come_from_the_hub(caller, hub, api):
    api.upload_file(path_or_fileobj=b"small", path_in_repo="small.txt", repo_id=REPO)
    url = f"{hub.url}/{REPO}/resolve/main/small.txt"
    assert requests.get(url, headers=caller.headers, allow_redirects=False, timeout=30).content == b"small"


@pytest.mark.parametrize("data", [DATA[:-1] + b"?", DATA[:-1], DATA + b"?"])
def test_other_bytes_than_announced_are_refused_and_removed(caller, store, data):
    found = actions(caller)
    assert put(found["upload"]["href"], data).status_code == 200
    assert adopted(caller, found).status_code == 400
    assert list(store.keys("objects/")) == list(store.keys(INCOMING)) == []
    assert "actions" in caller.batch((OID, len(DATA))).json()["objects"][0]


def test_bytes_sent_after_the_verification_change_nothing(caller, store):
    found = actions(caller)
    put(found["upload"]["href"])
    adopted(caller, found)
    assert put(found["upload"]["href"], b"others").status_code == 200
    assert hashlib.sha256(store.read(object_key(OID))).hexdigest() == OID
    assert adopted(caller, found).status_code == 400  # refused, and what was stored stays
    assert store.read(object_key(OID)) == DATA


def test_an_address_for_verification_is_valid_for_its_own_upload_only(caller, hub):
    found = actions(caller)
    href = found["verify"]["href"]
    other = actions(caller)["verify"]["href"].partition("key=")[2].partition("&")[0]
    key = href.partition("key=")[2].partition("&")[0]
    assert requests.post(href.replace(key, other), json={}, timeout=30).status_code == 403
    assert adopted(caller, found).status_code == 404  # nothing arrived


def test_garbage_collection_removes_what_was_never_verified(caller, hub, store):
    put(actions(caller)["upload"]["href"])
    collect(hub.registry, grace=timedelta(days=1))
    assert len(list(store.keys(INCOMING))) == 1
    collect(hub.registry, grace=timedelta(0))
    assert list(store.keys(INCOMING)) == []
