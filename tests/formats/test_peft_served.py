"""A delta that was written for PEFT is loaded by PEFT from a hub of one's own, which it knows by HF_ENDPOINT alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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
from tests.backbones import inputs_for, llama, logits_of, stir
from tests.hub_server import hub_server

_LOAD = """
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

backbone = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
model = PeftModel.from_pretrained(backbone, "acme/served").eval()
with torch.no_grad():
    save_file({"logits": model(**load_file(sys.argv[2])).logits}, sys.argv[3])
"""


@pytest.mark.slow
def test_peft_loads_a_written_delta_from_a_hub_that_it_knows_by_its_address_alone(tmp_path):
    backbone = llama()
    backbone.save_pretrained(tmp_path / "backbone")
    delta = LoraModel(backbone)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "delta")
    folder = export_peft(tmp_path / "delta", tmp_path / "peft")
    save_file(inputs_for(backbone), tmp_path / "inputs.safetensors")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}

    with hub_server(Registry(LocalStore(tmp_path / "served"), "served")) as hub:
        user = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": hub.token("write", "acme")}

        def run(*command: object) -> None:
            subprocess.run(
                [*map(str, command)], env={**kept, **user, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True
            )

        run(Path(sys.executable).parent / "hf", "upload", "acme/served", folder)
        run(sys.executable, "-c", _LOAD, *(tmp_path / name for name in ("backbone", "inputs.safetensors", "found")))

    found = load_file(tmp_path / "found")["logits"]
    assert torch.allclose(found, logits_of(backbone), atol=1e-4)


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
