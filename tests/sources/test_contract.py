"""What every source promises: the same delta loads as the same, damage is found, what is missing is said with its place."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel
from deltahub.checkpoint import checkpoint
from deltahub.errors import CheckpointError, DeltaHubError, NotFoundError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.bundle import export_bundle
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.settings.source_entry import SourceEntry
from deltahub.settings.user import change
from deltahub.sources.registry import RegistrySource
from deltahub.stores.base import object_key
from deltahub.stores.bucket import Bucket
from deltahub.stores.bucket_store import BucketStore
from deltahub.stores.local import LocalStore
from deltahub.stores.memory import MemoryStore
from deltahub.testing import SourceContract
from tests.backbones import bert, train, untouched
from tests.clocks import clock
from tests.hub_server import HubServer, hub_server
from tests.sources.web_server import Site, serving

NER = Reference.parse("acme/ner")


class TestRegistrySource(SourceContract):
    @pytest.fixture
    def source(self, folder, tmp_path):
        registry = Registry(MemoryStore(), "team")
        publish(registry, Publication(Reference(self.PATH), checkpoint.describe(folder), folder))
        return RegistrySource(registry, tmp_path / "indexes")


class Origin(ABC):
    """One place that a delta is in.

    Attributes:
        remote: whether reading it needs the network.
        checked: whether its bytes go through the cache.
    """

    remote = False
    checked = True

    @abstractmethod
    def hold(self, folder: Path) -> str:
        """Put the delta there, and give what it is loaded by."""

    @abstractmethod
    def break_weights(self) -> None:
        """Change a byte of its weights."""

    @abstractmethod
    def missing(self) -> tuple[str, str]:
        """What it does not have, and the place that the error must name."""

    def silence(self) -> None:  # noqa: B027  (what needs no network has nothing to silence)
        """Give no more answers."""


class Folder(Origin):
    checked = False

    def __init__(self, root: Path) -> None:
        self.folder = root / "delta"

    def hold(self, folder: Path) -> str:
        folder.rename(self.folder)
        return str(self.folder)

    def break_weights(self) -> None:
        change_byte(self.folder / checkpoint.WEIGHTS)

    def missing(self) -> tuple[str, str]:
        return f"{self.folder}-other", f"{self.folder}-other"


class InRegistry(Origin):
    """A registry that is a source called team."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.weights = ""

    def hold(self, folder: Path) -> str:
        manifest = checkpoint.describe(folder)
        self.weights = next(entry.sha256 for entry in manifest.files if entry.path == checkpoint.WEIGHTS)
        publish(self.registry, Publication(NER, manifest, folder))
        return "team:acme/ner"

    def break_weights(self) -> None:
        key = object_key(self.weights)
        data = bytearray(self.registry.store.read(key))
        data[-1] ^= 1
        self._overwrite(key, bytes(data))

    def _overwrite(self, key: str, data: bytes) -> None:
        path = self.registry.store.root / key
        path.chmod(0o644)
        path.write_bytes(data)

    def missing(self) -> tuple[str, str]:
        return "team:acme/other", self.registry.place


class InMemory(InRegistry):
    def _overwrite(self, key: str, data: bytes) -> None:
        self.registry.store.delete(key)
        self.registry.store._data[key] = data


class InBucket(InRegistry):
    remote = True

    def __init__(self, bucket: Bucket, server) -> None:
        super().__init__(Registry(BucketStore(bucket), "team"))
        self.bucket, self.server = bucket, server

    def _overwrite(self, key: str, data: bytes) -> None:
        import obstore

        from deltahub.stores.bucket import Patience
        from deltahub.stores.bucket_clients import connect

        obstore.put(connect(self.bucket, Patience())[1], key, data)


class OnAHub(InMemory):
    """A registry that a hub serves, which is asked over the protocol of the Hugging Face Hub."""

    remote = True

    def __init__(self, registry: Registry, server: HubServer) -> None:
        super().__init__(registry)
        self.server = server

    def missing(self) -> tuple[str, str]:
        return "team:acme/other", f"team ({self.server.url})"


class OnTheWeb(Origin):
    remote = True

    def __init__(self, site: Site) -> None:
        self.site = site

    def missing(self) -> tuple[str, str]:
        return f"{self.site.url}/other", f"{self.site.url}/other/delta_config.json"

    def silence(self) -> None:
        self.site.rules.append(lambda handler: handler.say(503) or True)


class WebFolder(OnTheWeb):
    def hold(self, folder: Path) -> str:
        folder.rename(self.site.root / "delta")
        return f"{self.site.url}/delta"

    def break_weights(self) -> None:
        change_byte(self.site.root / "delta" / checkpoint.WEIGHTS)


class WebBundle(OnTheWeb):
    def hold(self, folder: Path) -> str:
        registry = Registry(MemoryStore())
        publish(registry, Publication(NER, checkpoint.describe(folder), folder))
        export_bundle([(registry, NER)], self.site.root / "delta.tar")
        return f"{self.site.url}/delta.tar"

    def break_weights(self) -> None:
        change_byte(self.site.root / "delta.tar", 4000)


def change_byte(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture(
    params=["folder", "local registry", "memory registry", "bucket", "hub", "link to a folder", "link to a bundle"]
)
def origin(request, tmp_path, monkeypatch) -> Iterator[Origin]:
    """Each place that a delta can come from."""
    for module in ("deltahub.sources.base.time", "huggingface_hub.utils._http.time"):
        monkeypatch.setattr(module, clock(sleep=lambda seconds: None))
    if request.param == "folder":
        yield Folder(tmp_path)
    elif request.param == "local registry":
        change(lambda known: known.add(SourceEntry("team", str(tmp_path / "team"))))
        yield InRegistry(Registry(LocalStore(tmp_path / "team"), "team"))
    elif request.param == "memory registry":
        registry = Registry(MemoryStore(), "team")
        opened = Hub.open
        monkeypatch.setattr(
            Hub, "open", lambda cache_dir=None, **how: Hub({"team": registry}, opened(cache_dir).cache, **how)
        )
        yield InMemory(registry)
    elif request.param == "bucket":
        request.getfixturevalue("s3_keys")
        server = request.getfixturevalue("s3")
        bucket = server.bucket()
        url = f"s3://{bucket.name}/{bucket.prefix}"
        change(lambda known: known.add(SourceEntry("team", url, bucket.endpoint, "us-east-1")))
        yield InBucket(bucket, server)
    elif request.param == "hub":
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        registry = Registry(MemoryStore(), "served")
        with hub_server(registry) as server:
            monkeypatch.setenv("TEAM_TOKEN", server.token("read"))
            change(lambda known: known.add(SourceEntry.checked("team", server.url, token_env="TEAM_TOKEN")))
            yield OnAHub(registry, server)
            huggingface_hub.close_session()
    else:
        with serving(tmp_path) as site:
            yield WebFolder(site) if request.param == "link to a folder" else WebBundle(site)


@pytest.fixture
def trained(tmp_path):
    """A saved delta after some training: its folder, its tensors and its digest."""
    backbone = bert()
    delta = LoraModel(backbone, lora_r=2)
    delta.freeze_module(exclude=["deltas", "classifier"])
    train(backbone, 1)
    folder = tmp_path / "trained"
    delta.save_finetuned(folder)
    return folder, delta.state_dict(), checkpoint.describe(folder).digest


def load(reference, **options):
    return AutoDeltaModel.from_finetuned(reference, backbone_model=bert(), **options)


def digest_in_cache(root: Path) -> list[str]:
    return [f"sha256:{folder.parent.name}{folder.name}" for folder in root.glob("deltas/??/*")]


def test_the_same_tensors_and_the_same_digest_come_from_every_source(origin, trained, tmp_path):
    folder, tensors, digest = trained
    reference = origin.hold(folder)
    loaded = load(reference, cache_dir=tmp_path / "cache").state_dict()

    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    if origin.checked:
        assert digest_in_cache(tmp_path / "cache") == [digest]
        assert checkpoint.describe(next((tmp_path / "cache").glob("deltas/??/*"))).digest == digest


def test_damage_is_found_in_every_source_and_leaves_the_backbone_alone(origin, trained):
    reference = origin.hold(trained[0])
    origin.break_weights()
    backbone = bert()
    with untouched(backbone), pytest.raises(DeltaHubError, match="damaged"):
        AutoDeltaModel.from_finetuned(reference, backbone_model=backbone)


def test_damage_in_the_cache_is_fetched_again(origin, trained, tmp_path):
    reference = origin.hold(trained[0])
    load(reference, cache_dir=tmp_path / "cache")
    for path in (tmp_path / "cache").glob(f"deltas/??/*/{checkpoint.WEIGHTS}"):
        change_byte(path)
    loaded = load(reference, cache_dir=tmp_path / "cache").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained[1].items())


def test_missing_files_are_reported_with_their_place(origin, trained):
    origin.hold(trained[0])
    reference, place = origin.missing()
    with pytest.raises(NotFoundError if origin.checked else CheckpointError) as caught:
        load(reference)
    assert place in str(caught.value)


def test_offline_pulled_deltas_load_and_others_are_refused(origin, trained, tmp_path):
    reference = origin.hold(trained[0])
    if origin.remote:
        with pytest.raises(NotFoundError, match=r"local_files_only is set.*Pull it beforehand"):
            load(reference, local_files_only=True, cache_dir=tmp_path / "cache")
    load(reference, cache_dir=tmp_path / "cache")
    origin.silence()
    loaded = load(reference, local_files_only=True, cache_dir=tmp_path / "cache").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in trained[1].items())


def test_a_source_that_falls_silent_is_answered_for_by_the_cache(origin, trained, tmp_path, caplog):
    if not isinstance(origin, OnTheWeb):
        pytest.skip("tests/sources/test_offline.py has it for registries")
    reference = origin.hold(trained[0])
    load(reference, cache_dir=tmp_path / "cache")
    origin.silence()
    with caplog.at_level(logging.WARNING, "deltahub"):
        load(reference, cache_dir=tmp_path / "cache")
    assert "is what it was when last pulled" in caplog.text


def test_force_download_fetches_again(origin, trained, tmp_path):
    if not origin.checked:
        pytest.skip("a folder is read where it is")
    reference = origin.hold(trained[0])
    load(reference, cache_dir=tmp_path / "cache")
    origin.break_weights()
    load(reference, cache_dir=tmp_path / "cache")
    with pytest.raises(DeltaHubError, match="damaged"):
        load(reference, cache_dir=tmp_path / "cache", force_download=True)
