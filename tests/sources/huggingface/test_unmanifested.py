"""Repos that other programs made, and pages that people edited on the hub."""

from __future__ import annotations

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from huggingface_hub import CommitOperationAdd
from safetensors.numpy import save

from deltahub import AutoDeltaModel
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.from_files import describe
from deltahub.errors import CheckpointError, IntegrityError
from deltahub.hub.hub import Hub
from deltahub.sources.huggingface.page import Card
from tests.backbones import bert, forward
from tests.checkpoints import content_of
from tests.foreign import FOLDERS
from tests.sources.huggingface.test_push_and_pull import api, delta_files, ref

OPENDELTA = {"delta_type": "lora", "modified_modules": ["query"], "lora_r": 8}


def upload(hub, repo, files):
    """Commit files as any client of the hub does."""
    api(hub).create_repo(repo, exist_ok=True)
    operations = [CommitOperationAdd(name, data) for name, data in files.items()]
    return api(hub).create_commit(repo, operations, commit_message="by hand").oid


def test_a_delta_that_was_uploaded_file_by_file_has_the_same_digest(hub, repo, checkpoint_folder):
    files = {**content_of(checkpoint_folder), "notes.txt": b"mine", "sub/delta_config.json": b"{}"}
    commit = upload(hub, repo, files)
    pulled = hub.pull(ref(repo))

    assert pulled.digest == checkpoint.describe(checkpoint_folder).digest
    assert str(pulled.reference) == f"hf:{repo}@{commit}"
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)


def test_it_can_be_fetched_again_without_being_described_again(hub, repo, checkpoint_folder):
    upload(hub, repo, content_of(checkpoint_folder))
    first = hub.pull(ref(repo))
    shutil.rmtree(first.folder / checkpoint.BACKBONE, ignore_errors=True)
    again = hub.pull(ref(repo), force=True)

    assert again.digest == first.digest
    assert delta_files(again.folder) == content_of(checkpoint_folder)


def test_one_that_was_uploaded_with_a_manifest_of_deltahub_needs_no_other_card(hub, repo, checkpoint_folder):
    manifest = checkpoint.describe(checkpoint_folder)
    upload(hub, repo, {**content_of(checkpoint_folder), "manifest.json": manifest.to_bytes()})
    assert delta_files(hub.pull(ref(repo)).folder) == content_of(checkpoint_folder)


def test_the_manifest_of_another_program_is_none(hub, repo, checkpoint_folder):
    for other in (b'{"files": ["a"]}', b"not json", b"[1]"):
        upload(hub, repo, {**content_of(checkpoint_folder), "manifest.json": other})
        assert hub.pull(ref(repo)).digest == checkpoint.describe(checkpoint_folder).digest


def test_editing_the_page_on_the_hub_does_not_change_the_delta(user, repo, checkpoint_folder):
    pushed = user().push(checkpoint_folder, f"hf:{repo}", tags=["best"])
    upload(user(), repo, {"README.md": b"---\nlicense: mit\n---\n# Better words\n"})

    pulled = user().pull(ref(repo))
    assert pulled.digest == pushed.digest
    assert delta_files(pulled.folder) == content_of(checkpoint_folder)


def test_a_push_keeps_edited_text_and_adds_the_version(user, repo, new_checkpoint):
    hub = user()
    hub.push(new_checkpoint(), f"hf:{repo}", tags=["best"])
    upload(hub, repo, {"README.md": b"---\nlicense: mit\ntags: [deltahub, lora, best]\n---\n# Better words\n"})
    second = hub.push(new_checkpoint(value=0.7, card="# Second\n"), f"hf:{repo}", tags=["late"])

    path = api(hub).hf_hub_download(repo, "README.md", revision=second.reference.version)
    with open(path, "rb") as file:  # noqa: PTH123
        page = Card.read(file.read())
    assert (page.text, page.facts["license"]) == ("# Better words\n", "mit")
    assert set(page.facts["tags"]) >= {"best", "late"}
    assert (user().pull(ref(repo)).folder / "README.md").read_bytes() == b"# Second\n"


def test_a_file_that_was_replaced_on_the_hub_is_found_by_the_config_that_vouches_for_it(hub, repo, checkpoint_folder):
    files = content_of(checkpoint_folder)
    weights = bytearray(files[checkpoint.WEIGHTS])
    weights[-1] ^= 1
    upload(hub, repo, {**files, checkpoint.WEIGHTS: bytes(weights)})
    with pytest.raises(IntegrityError, match=rf"hf:{repo}@[0-9a-f]{{40}}/delta.safetensors is damaged"):
        hub.pull(ref(repo))


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": json.dumps(OPENDELTA).encode(), "pytorch_model.bin": b"a pickle"},
        {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.safetensors": save({"a": np.ones(2)})},
        {"adapter_config.json": b'{"peft_type": "LORA"}', "adapter_model.bin": b"a pickle"},
    ],
    ids="+".join,
)
def test_checkpoints_of_other_libraries_are_pulled_without_other_files(hub, repo, files, proxy):
    own = {**files, "README.md": b"# Theirs\n"}
    upload(hub, repo, {**own, "optimizer.pt": b"large", "checkpoint-1/adapter_config.json": b"{}"})
    pulled = hub.pull(ref(repo))

    found = content_of(pulled.folder)
    assert {name: found[name] for name in own} == own
    assert pulled.manifest.kind == "files"
    assert not [path for _, path in proxy.requests if "optimizer.pt" in path and "resolve" in path]
    assert hub.pull(ref(repo), force=True).digest == pulled.digest


@pytest.mark.parametrize("name", FOLDERS)
def test_each_format_has_the_same_identity_in_a_folder_and_on_a_hub(hub, repo, tmp_path, name):
    write, _ = FOLDERS[name]
    write(tmp_path)
    upload(hub, repo, {**content_of(tmp_path), "optimizer.pt": b"state"})
    assert hub.pull(ref(repo)).digest == describe(tmp_path, allow_pickle=True).digest


@pytest.mark.parametrize("name", FOLDERS)
def test_each_format_is_pushed_to_a_hub_and_pulled_with_its_identity(hub, repo, tmp_path, name):
    write, _ = FOLDERS[name]
    write(tmp_path)
    pushed = hub.push(tmp_path, f"hf:{repo}", allow_pickle=True)
    assert hub.pull(ref(repo), force=True).digest == pushed.digest


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT asks by the old name
def test_an_adapter_of_peft_loads_from_a_hub(proxy, token, repo, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", proxy.url)
    monkeypatch.setenv("HF_TOKEN", token)
    theirs = peft.get_peft_model(bert(), peft.LoraConfig(target_modules=["query"], r=2, init_lora_weights=False)).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    upload(Hub.open(), repo, content_of(tmp_path / "adapter"))

    backbone = bert()
    AutoDeltaModel.from_finetuned(f"hf:{repo}", backbone_model=backbone, check_hash=False)
    torch.testing.assert_close(forward(backbone), forward(theirs))


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "holds no delta: delta_config.json is missing"),
        ({"config.json": b"{", "pytorch_model.bin": b""}, "holds no delta: delta_config.json is missing"),
        ({"adapter_config.json": b"{}"}, "holds no delta: delta_config.json is missing"),
        ({"notes.txt": b""}, r"holds no delta: delta_config.json is missing, and there is .*notes.txt"),
        ({"delta_config.json": b"{}"}, "delta_type"),
        ({"delta_config.json": b"{"}, "is not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_a_repo_without_a_delta_is_refused_in_a_sentence(hub, repo, files, sentence):
    upload(hub, repo, files)
    with pytest.raises((CheckpointError, ValueError), match=sentence) as caught:
        hub.pull(ref(repo))
    assert "/tmp" not in str(caught.value)
