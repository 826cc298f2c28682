"""How a hub begins."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from deltahub.checkpoint.checkpoint import describe
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.server.app import build_app
from deltahub.stores.local import LocalStore
from tests.server.pages.deltas import save_delta


def begun(registry):
    """An application that has begun, and done what it begins with."""
    app = build_app(registry)

    async def begin():
        async with app.router.lifespan_context(app):
            for thread in threading.enumerate():
                if thread.name == "index":
                    await asyncio.to_thread(thread.join)

    with ThreadPoolExecutor(1) as elsewhere:  # the main thread may be in the loop of a browser
        elsewhere.submit(lambda: asyncio.run(begin())).result()
    return app.state.hub


def test_a_hub_begins_with_its_search_index(tmp_path, monkeypatch):
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "cache"))
    registry = Registry(LocalStore(tmp_path / "registry"))
    folder = save_delta(tmp_path / "ckpt")
    publish(registry, Publication(Reference.parse("acme/ner"), describe(folder), folder))
    with sqlite3.connect(begun(registry).index.path) as database:
        assert database.execute("SELECT count(*) FROM deltas").fetchone() == (1,)
    database.close()


def test_a_hub_begins_without_its_index_where_the_registry_cannot_be_read(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "registry").write_text("a file")
    begun(Registry(LocalStore(tmp_path / "registry")))
    assert "The search index waits for the first visitor" in caplog.text


def test_a_hub_whose_catalogue_is_down_searches_and_says_so(tmp_path, monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setenv("DELTAHUB_CACHE", str(tmp_path / "cache"))
    registry = Registry(LocalStore(tmp_path / "registry"))
    folder = save_delta(tmp_path / "ckpt")
    publish(registry, Publication(Reference.parse("acme/ner"), describe(folder), folder))
    app = build_app(registry, catalogue=f"postgresql:///none?host={tmp_path}")
    with TestClient(app) as client:
        assert "acme/ner" in client.get("/?q=ner").text
        assert client.get("/readyz").text == "ready; the database of the catalogue is down\n"
        assert "deltahub_catalogue_down 1.0" in client.get("/metrics").text
