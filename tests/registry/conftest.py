"""Registries over every store, and what their tests look at."""

from __future__ import annotations

import pytest

from deltahub.registry.registry import Registry
from deltahub.stores.base import Store
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from tests.s3_servers import QUICK


@pytest.fixture(params=["local", "memory", "s3"])
def new_registry(request, tmp_path):
    """Makes empty registries over a store of each kind."""

    def store(name) -> Store:
        if request.param == "local":
            return LocalStore(tmp_path / f"registry-{name}")
        if request.param == "memory":
            return MemoryStore()
        request.getfixturevalue("s3_keys")
        return BucketStore(request.getfixturevalue("s3").bucket(), QUICK)

    return lambda name="local": Registry(store(name), name)


@pytest.fixture
def anywhere(new_registry) -> Registry:
    """An empty registry over a store of each kind."""
    return new_registry()
