"""How often a hub is asked: as seldom as its protocol allows."""

from __future__ import annotations

import pytest

from deltahub import AutoDeltaModel, LoraModel
from deltahub.checkpoint.card import front_matter
from deltahub.checkpoint.checkpoint import WEIGHTS
from deltahub.errors import NotCachedError
from deltahub.hub.hub import Hub
from deltahub.sources.huggingface.page import Card
from tests.backbones import bert
from tests.checkpoints import DOCUMENT
from tests.sources.huggingface.test_push_and_pull import delta_files, ref

PATHS = ("manifest.json", "README.md", "backbone.json", "delta.safetensors", "delta_config.json")


def asked(proxy):
    """The requests since the last time, as method and the end of their path."""
    found = [(method, path.rpartition("/")[2]) for method, path in proxy.requests]
    proxy.requests.clear()
    return found


@pytest.fixture
def checkpoint_folder(new_checkpoint):
    """One whose card says all that the hub wants to know, as `save_finetuned` writes it."""
    return new_checkpoint(card=Card(front_matter(DOCUMENT), "# A delta\n").to_bytes().decode())


@pytest.fixture
def pushed(user, repo, checkpoint_folder, proxy):
    done = user().push(checkpoint_folder, f"hf:{repo}", aliases=["champion"])
    proxy.requests.clear()
    return done


def test_a_cold_pull_asks_once_for_each_file(hub, pushed, repo, proxy):
    hub.pull(ref(repo))
    assert sorted(asked(proxy)) == sorted(("GET", path) for path in (*PATHS[:1], *PATHS[2:], "README.md"))


def test_a_warm_pull_of_a_movable_reference_makes_one_request(hub, pushed, repo, proxy):
    hub.pull(ref(repo))
    asked(proxy)
    for version in (None, "main", "champion", "v1"):
        hub.pull(ref(repo, version))
        assert asked(proxy) == [("GET", "manifest.json")]


def test_a_pinned_commit_that_is_in_the_cache_asks_nothing(hub, pushed, repo, proxy):
    hub.pull(ref(repo))
    asked(proxy)
    assert hub.pull(pushed.reference).digest == pushed.digest
    assert asked(proxy) == []


def test_the_same_delta_at_another_commit_fetches_no_file(hub, user, pushed, repo, proxy, checkpoint_folder):
    hub.pull(ref(repo))
    user().push(checkpoint_folder, f"hf:{repo}", tags=["late"])
    asked(proxy)
    hub.pull(ref(repo))
    assert asked(proxy) == [("GET", "manifest.json")]


def test_from_finetuned_asks_as_seldom(pushed, repo, proxy, token, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", proxy.url)
    monkeypatch.setenv("HF_TOKEN", token)
    backbone = bert()
    delta = LoraModel(backbone, modified_modules=["query"])
    delta.freeze_module(exclude=["deltas"])
    delta.save_finetuned(tmp_path / "ckpt")
    delta.detach()
    done = Hub.open().push(tmp_path / "ckpt", f"hf:{repo}-real", allow_untrained=True)
    asked(proxy)

    def load(reference):
        AutoDeltaModel.from_finetuned(reference, backbone_model=backbone).detach()
        return asked(proxy)

    assert len(load(f"hf:{repo}-real@main")) == len(PATHS)
    assert load(f"hf:{repo}-real@main") == [("GET", "manifest.json")]
    assert load(str(done.reference)) == []


def test_files_in_the_hugging_face_cache_are_not_downloaded_again(hub, pushed, repo, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    hub.source("hf").calls.api.snapshot_download(repo, cache_dir=tmp_path / "hf" / "hub")
    asked(proxy)
    pulled = hub.pull(ref(repo))

    assert pulled.digest == pushed.digest
    assert asked(proxy) == [("GET", "manifest.json")]


def test_a_damaged_file_in_that_cache_is_downloaded_and_left_as_it_is(hub, pushed, repo, proxy, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = hub.source("hf").calls.api.snapshot_download(repo, cache_dir=tmp_path / "hub")
    weights = tmp_path / "hub" / folder / WEIGHTS
    weights.write_bytes(b"damaged")
    asked(proxy)
    pulled = hub.pull(ref(repo))

    assert pulled.digest == pushed.digest
    assert asked(proxy) == [("GET", "manifest.json"), ("GET", WEIGHTS)]
    assert weights.read_bytes() == b"damaged"


def test_offline_a_pulled_delta_loads_by_every_name_it_was_pulled_by(hub, pushed, repo, proxy, monkeypatch):
    first = hub.pull(ref(repo, "champion"))
    asked(proxy)
    monkeypatch.setenv("DELTAHUB_OFFLINE", "1")
    for version in ("champion", pushed.reference.version):
        assert delta_files(hub.pull(ref(repo, version)).folder) == delta_files(first.folder)
    with pytest.raises(NotCachedError, match=r"DELTAHUB_OFFLINE is set.*Pull it beforehand"):
        hub.pull(ref(f"{repo}-other"))
    assert asked(proxy) == []


def test_a_delta_that_was_damaged_in_our_cache_is_fetched_again(hub, pushed, repo, proxy):
    folder = hub.pull(ref(repo)).folder
    whole = delta_files(folder)
    (folder / WEIGHTS).write_bytes(b"damaged")
    assert delta_files(hub.pull(pushed.reference).folder) == whole


def test_a_push_of_existing_content_sends_nothing(hub, pushed, repo, proxy, checkpoint_folder):
    hub.push(checkpoint_folder, f"hf:{repo}", aliases=["champion"])
    assert all(method == "GET" for method, _ in proxy.requests)
    assert len(proxy.requests) <= 4
