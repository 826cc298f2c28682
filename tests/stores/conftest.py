"""Every kind of store, empty."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from deltahub.stores.base import Store
from deltahub.stores.bucket import Bucket
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests import azure_server, google_server
from tests.s3_servers import QUICK


@pytest.fixture(scope="session")
def google_url() -> Iterator[str]:
    with google_server.google_server() as url:
        yield url


@pytest.fixture(scope="session")
def azure_url(tmp_path_factory) -> Iterator[str]:
    with azure_server.azure_server(tmp_path_factory.mktemp("azurite")) as url:
        yield url


@pytest.fixture
def google(google_url, monkeypatch) -> Bucket:
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", google_server.ACCOUNT)
    return Bucket.parse(f"gs://{google_server.BUCKET}/test/{uuid.uuid4().hex}", endpoint=google_url)


@pytest.fixture
def azure(azure_url, monkeypatch) -> Bucket:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", azure_server.ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure_server.KEY)
    return Bucket.parse(f"az://{azure_server.CONTAINER}/test/{uuid.uuid4().hex}", endpoint=azure_url)


@pytest.fixture(params=["local", "memory", "s3", "moto", "seaweed", "google", "azure"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    if request.param == "memory":
        return MemoryStore()
    place: Any = request.getfixturevalue(request.param)
    if isinstance(place, Bucket):
        return BucketStore(place, QUICK)
    request.getfixturevalue("s3_keys")
    return BucketStore(place.bucket(), QUICK)
