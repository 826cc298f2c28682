"""One registry, two doors: what DeltaHub pushes is there for the clients of the Hub, and the other way round, under equal digests."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import snapshot_download
from safetensors.numpy import save_file

from deltahub.cache.cache import Cache
from deltahub.checkpoint import checkpoint
from deltahub.errors import CheckpointError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from deltahub.registry.bundle import export_bundle, import_bundle
from deltahub.registry.gc import collect
from deltahub.registry.mirror import copy
from deltahub.registry.registry import Registry
from deltahub.registry.search.conditions import Search
from deltahub.registry.verify import verify
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import content_of

# A card without front matter, as on the Hub.
pytestmark = pytest.mark.filterwarnings("ignore:Warnings while validating metadata")
REPO = "acme/sst2"


@pytest.fixture
def local(hub, tmp_path) -> Hub:
    """A user of DeltaHub, on the registry that the hub serves."""
    return Hub({hub.registry.name: hub.registry}, Cache(tmp_path / "cache"))


@pytest.fixture
def adapter(tmp_path) -> Path:
    """An adapter in the format of PEFT."""
    folder = tmp_path / "adapter"
    (folder / "extra").mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased", "r": 8}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": np.ones((2, 3), np.float32)}, folder / "adapter_model.safetensors")
    (folder / "extra/notes.txt").write_text("notes")
    return folder


def test_a_delta_that_was_pushed_is_there_for_the_client(api, local, checkpoint_folder, tmp_path):
    pushed = local.push(checkpoint_folder, REPO, tags=["sst2"], aliases=["champion"], message="better")
    found = snapshot_download(REPO, endpoint=api.endpoint, token=api.token, cache_dir=tmp_path / "hf")

    assert content_of(Path(found)) == content_of(checkpoint_folder)
    assert f"sha256:{Path(found).name}" == pushed.digest[: 7 + 40]
    assert [(tag.name, tag.target_commit) for tag in api.list_repo_refs(REPO).tags] == [("champion", Path(found).name)]
    assert [(commit.title, commit.authors) for commit in api.list_repo_commits(REPO)] == [("better", ["ada"])]
    info = api.model_info(REPO)
    assert (info.library_name, info.private) == ("deltahub", False)
    assert {"sst2", "lora", "base_model:bert-tiny"} <= set(info.tags)


def test_a_delta_that_the_client_uploaded_is_the_one_that_a_push_makes(api, local, hub, checkpoint_folder):
    api.create_repo(REPO)
    made = api.upload_folder(repo_id=REPO, folder_path=checkpoint_folder, commit_message="by hf")
    pulled = local.pull(Reference.parse(REPO))

    assert pulled.digest == checkpoint.describe(checkpoint_folder).digest
    assert pulled.digest.startswith(f"sha256:{made.oid}")
    assert content_of(pulled.folder).items() >= content_of(checkpoint_folder).items()
    again = local.push(checkpoint_folder, REPO)
    assert (again.new, str(again.reference), again.digest) == (False, f"served:{REPO}@v1", pulled.digest)
    entry = hub.registry.document(REPO).versions["v1"]
    assert (entry.message, entry.summary["delta_type"]) == ("by hf", "lora")


def test_the_tags_saved_with_a_delta_come_with_it_through_either_door(api, local, hub, new_checkpoint):
    folder = new_checkpoint(metadata={"tags": ["task=sst2", "no tag: \u00e9"]})
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)

    assert hub.registry.document(REPO).versions["v1"].tags == ("task=sst2",)


def test_a_delta_uploaded_file_by_file_is_one_when_its_last_part_has_come(api, local, checkpoint_folder):
    api.create_repo(REPO)
    for path in sorted(checkpoint_folder.iterdir()):
        api.upload_file(repo_id=REPO, path_or_fileobj=path, path_in_repo=path.name)

    assert local.pull(Reference.parse(REPO)).digest == checkpoint.describe(checkpoint_folder).digest
    kinds = [local.resolve(Reference.parse(f"{REPO}@v{n}")).manifest.kind for n in range(1, 5)]
    assert kinds == ["files", "files", "files", "delta"]


def test_a_push_and_a_commit_follow_each_other_on_the_main_line(api, local, new_checkpoint):
    local.push(new_checkpoint(value=1.0), REPO)
    committed = api.upload_folder(repo_id=REPO, folder_path=new_checkpoint(value=2.0))
    pushed = local.push(new_checkpoint(value=3.0), REPO)

    ids = [commit.commit_id for commit in api.list_repo_commits(REPO)]
    assert (len(ids), ids[1], f"sha256:{ids[0]}") == (3, committed.oid, pushed.digest[:47])


def test_files_of_any_kind_are_listed_pulled_verified_copied_and_kept(api, local, hub, adapter, tmp_path):
    api.create_repo(REPO)
    made = api.upload_folder(repo_id=REPO, folder_path=adapter)

    (listed,), _ = local.search(Search())
    assert (listed.name, listed.summary["delta_type"], listed.summary["parameters"]) == (REPO, "peft lora", 6)
    assert listed.summary["backbone_checkpoint_name"] == "bert-base-uncased"

    pulled = local.pull(Reference.parse(REPO), to=tmp_path / "pulled")
    assert content_of(tmp_path / "pulled") == content_of(adapter)
    assert dict(verify(hub.registry)) == {f"{REPO}@v1": None}

    other = Registry(MemoryStore(), "other")
    assert [copied.name for copied in copy(hub.registry, other)] == [REPO]
    assert other.document(REPO).versions["v1"].digest == pulled.digest
    collect(hub.registry, timedelta(0))
    assert collect(hub.registry, timedelta(0)).freed == {}
    assert snapshot_download(REPO, endpoint=api.endpoint, token=api.token, revision=made.oid, cache_dir=tmp_path / "hf")


def test_files_of_any_kind_and_branches_travel_in_a_bundle(api, hub, adapter, tmp_path):
    api.create_repo(REPO)
    made = api.upload_folder(repo_id=REPO, folder_path=adapter)
    api.create_branch(REPO, branch="exp")
    api.upload_file(repo_id=REPO, path_or_fileobj=b"1", path_in_repo="exp.txt", revision="exp")
    export_bundle([(hub.registry, Reference.parse(REPO))], tmp_path / "all.tar", history=True)
    export_bundle([(hub.registry, Reference.parse(f"{REPO}@v1"))], tmp_path / "one.tar")

    whole, one = Registry(MemoryStore()), Registry(MemoryStore())
    import_bundle(tmp_path / "all.tar", whole)
    import_bundle(tmp_path / "one.tar", one)
    assert whole.document(REPO) == hub.registry.document(REPO)
    assert whole.document(REPO).branches == {"main": "v1", "exp": "v2"}
    assert one.document(REPO).versions["v1"].digest.startswith(f"sha256:{made.oid}")
    assert set(dict(verify(whole)).values()) == {None}


def test_deletions_by_a_client_are_freed_by_collections(api, hub, adapter):
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=adapter)
    api.delete_repo(REPO)

    collect(hub.registry, timedelta(0))
    collect(hub.registry, timedelta(0))
    assert list(hub.registry.store.keys("objects/")) == []


def test_show_says_what_files_are(api, hub, adapter, monkeypatch, capsys):
    from deltahub_cli.main import main

    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=adapter)
    monkeypatch.setattr("sys.argv", ["deltahub", "show", f"{hub.registry.store.url}:{REPO}"])
    with pytest.raises(SystemExit):
        main()

    shown = capsys.readouterr().out
    assert "peft lora" in shown
    assert "bert-base-uncased" in shown


@pytest.mark.parametrize(
    ("file", "said"), [("adapter_config.json", "an adapter of another library"), ("config.json", "a model, which")]
)
def test_loading_files_as_a_delta_says_what_they_are(tmp_path, file, said):
    (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match=f"holds no delta.*It holds {said}"):
        checkpoint.read_document(tmp_path)
