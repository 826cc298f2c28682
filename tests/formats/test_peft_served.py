"""A checkpoint of PEFT in a registry is loaded by its name. That PEFT loads from a hub: server/protocol/test_tools.py."""

from __future__ import annotations

import torch

from deltahub import AutoDeltaModel, LoraModel, export_peft
from deltahub.cache.cache import Cache
from deltahub.checkpoint.checkpoint import describe
from deltahub.checkpoint.from_files import describe_files
from deltahub.checkpoint.manifest import FileEntry
from deltahub.files.atomic import sha256_file
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.publish import Publication, publish
from deltahub.registry.registry import Registry
from deltahub.stores.local import LocalStore
from tests.backbones import llama, logits_of, stir


def test_an_adapter_in_a_registry_is_loaded_by_its_name(tmp_path, monkeypatch):
    backbone = llama()
    delta = LoraModel(backbone)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "delta")
    folder = export_peft(tmp_path / "delta", tmp_path / "peft")
    registry, fresh = Registry(LocalStore(tmp_path / "served"), "team"), llama()
    entries = [FileEntry(path.name, *sha256_file(path)) for path in sorted(folder.iterdir())]
    manifest = describe_files(entries, lambda entry, start, end: (folder / entry.path).read_bytes()[start:end])
    publish(registry, Publication(Reference.parse("acme/adapter"), manifest, folder))
    hub = Hub({"team": registry}, Cache(tmp_path / "cache"))
    monkeypatch.setattr(Hub, "open", classmethod(lambda cls, *_, **__: hub))
    loaded = AutoDeltaModel.from_finetuned("acme/adapter", backbone_model=fresh)
    loaded.save_finetuned(tmp_path / "again")

    assert manifest.kind == "files"
    assert torch.equal(logits_of(fresh), logits_of(backbone))
    assert describe(tmp_path / "again").config["parents"][0]["name"] == "team:acme/adapter@v1"
