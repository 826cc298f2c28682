"""Stores and sources that installed packages add are used by their names, and only by those."""

from __future__ import annotations

import sys

import pytest

from deltahub.cache.cache import Cache
from deltahub.errors import ConfigError, NotFoundError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.registry import Registry
from deltahub.settings.source_entry import SourceEntry, place_of
from deltahub.stores.memory import MemoryStore
from tests.packages import install

CODE = """
from deltahub.registry.registry import Registry
from deltahub.sources.registry import RegistrySource
from deltahub.stores.memory import MemoryStore

class Store(MemoryStore):
    def __init__(self, url):
        super().__init__()
        self.given = url

def source(name):
    return RegistrySource(Registry(MemoryStore(), name if name != "liar" else "other"), None)
"""
ENTRY_POINTS = """
[deltahub.stores]
nas = acme_places:Store
s3 = acme_absent:Store
broken = acme_absent:Store

[deltahub.sources]
archive = acme_places:source
liar = acme_places:source
hf = acme_absent:source
"""


@pytest.fixture
def hub(tmp_path, monkeypatch):
    install(tmp_path / "site", "acme-places", ENTRY_POINTS, "acme_places", CODE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield Hub({"team": Registry(MemoryStore(), "team")}, Cache(tmp_path / "cache"))
    sys.modules.pop("acme_places", None)


def test_a_store_is_found_by_the_scheme_of_its_url(hub):
    entry = SourceEntry.checked("lab", "nas://ml/deltas/")
    assert entry.url == "nas://ml/deltas"
    assert entry.store().given == "nas://ml/deltas"
    assert not entry.missing
    assert Reference.parse("nas://ml/deltas:acme/ner@v1").source == "nas://ml/deltas"
    assert hub.registry("nas://ml/deltas").store.given == "nas://ml/deltas"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("none://ml/deltas", "is not the location of a registry"),
        ("file://ml/deltas", "is not the location of a registry"),
        ("nas://user:secret@ml/deltas", "without user, secret"),
        ("none://user:secret@ml/deltas", "without user, secret"),
        ("nas://ml/deltas?token=secret", "without user, secret"),
        ("broken://ml", "'broken' comes from the package acme-places, whose acme_absent:Store cannot be imported"),
    ],
)
def test_an_address_that_no_package_serves_or_that_holds_a_secret_is_refused(hub, url, why):
    with pytest.raises(ConfigError, match=why) as caught:
        SourceEntry.checked("lab", url)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


def test_a_built_in_scheme_is_never_taken_from_a_package(hub):
    assert place_of("s3://bucket/deltas/") == "s3://bucket/deltas"
    assert "acme_absent" not in sys.modules


def test_a_source_is_used_where_a_reference_names_it_and_nowhere_else(hub):
    with pytest.raises(NotFoundError, match="Looked in: team"):
        hub.resolve(Reference.parse("acme/ner"))
    assert "acme_places" not in sys.modules
    with pytest.raises(NotFoundError, match="Looked in: archive"):
        hub.resolve(Reference.parse("archive:acme/ner"))
    assert hub.source("archive") is hub.source("archive")


def test_a_source_of_another_name_or_of_a_reserved_one_is_refused(hub):
    with pytest.raises(
        ConfigError, match=r"'liar' comes from the package acme-places, .* gives a source called 'other'"
    ):
        hub.source("liar")
    for name in ("hf", "nowhere"):
        with pytest.raises(NotFoundError):
            hub.source(name)
