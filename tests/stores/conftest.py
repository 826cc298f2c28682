"""Every kind of store, empty."""

from __future__ import annotations

import pytest

from deltahub.stores.base import Store
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.s3_servers import QUICK


@pytest.fixture(params=["local", "memory", "moto", "seaweed"])
def store(request, tmp_path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "store")
    if request.param == "memory":
        return MemoryStore()
    request.getfixturevalue("s3_keys")
    return BucketStore(request.getfixturevalue(request.param).bucket(), QUICK)
