"""A saved delta says what it came of: its backbone's revision, its parents and the releases that saved it."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

import pytest

from deltahub import AutoDeltaModel, LoraModel, deltas_of
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.checkpoint import describe
from deltahub.checkpoint.config import check_document
from deltahub.errors import CheckpointError, ConfigError
from deltahub.hub.hub import Hub
from deltahub.reference import Reference
from tests.backbones import OPENDELTA, bert, train
from tests.formats.test_opendelta import backbone_of, facts_of

DIGEST = f"sha256:{'1' * 64}"


def save(backbone, folder):
    LoraModel(backbone, lora_r=2).save_finetuned(folder)
    return folder


def resume(source, folder):
    """Load a delta, train it on, and save it."""
    backbone = bert()
    delta = AutoDeltaModel.from_finetuned(source, backbone_model=backbone)
    delta.freeze_module()
    train(backbone)
    delta.save_finetuned(folder)
    return folder


def config_of(folder):
    return describe(folder).config


def test_a_new_delta_has_no_parents_and_says_what_saved_it(tmp_path):
    config = config_of(save(bert(), tmp_path))

    assert config["parents"] == []
    assert [config[f"{tool}_version"] for tool in ("transformers", "torch")] == [
        version("transformers"),
        version("torch"),
    ]
    assert "backbone_revision" not in config


@pytest.mark.parametrize(
    ("origin", "commit", "name"),
    [
        ("google-bert/bert-base-uncased", "a" * 40, "google-bert/bert-base-uncased"),
        ("/home/ada/snapshots/bert", "a" * 40, "bert"),
        ("google-bert/bert-base-uncased", None, "bert-base-uncased"),
        ("gpt2", "a" * 40, "gpt2"),
    ],
)
def test_a_backbone_of_the_hub_goes_by_its_whole_name_and_any_other_by_its_last_part(tmp_path, origin, commit, name):
    backbone = bert()
    backbone.config._name_or_path, backbone.config._commit_hash = origin, commit
    config = config_of(save(backbone, tmp_path))

    assert (config["backbone_checkpoint_name"], config.get("backbone_revision")) == (name, commit)
    assert ("backbone revision" in (tmp_path / "README.md").read_text("utf-8")) == (commit is not None)


def test_a_delta_that_was_trained_on_names_its_parent_by_digest(tmp_path):
    first = save(bert(), tmp_path / "first")
    parent = {"relation": "resumed", "digest": describe(first).digest}
    second = resume(first, tmp_path / "second")

    assert config_of(second)["parents"] == [parent]
    assert f"| resumed from | `{parent['digest']}` |" in (second / "README.md").read_text("utf-8")


def test_a_delta_that_was_pulled_names_its_parent_as_it_was_published(tmp_path):
    pushed = Hub.open().push(save(bert(), tmp_path / "first"), "acme/first", tags=["lang=en"])
    second = resume("acme/first@latest", tmp_path / "second")

    assert config_of(second)["parents"] == [
        {"relation": "resumed", "digest": pushed.digest, "name": "local:acme/first@v1"}
    ]


def test_a_delta_saved_over_its_parent_still_names_it(tmp_path):
    folder = save(bert(), tmp_path / "delta")
    before = describe(folder).digest

    assert config_of(resume(folder, folder))["parents"] == [{"relation": "resumed", "digest": before}]


def test_the_parent_is_the_same_from_any_folder_with_its_files(tmp_path):
    hub = Hub.open()
    first = save(bert(), tmp_path / "first")
    hub.push(first, "acme/first")
    hub.pull(Reference.parse("acme/first"), to=tmp_path / "copy")

    parents = [
        config_of(resume(source, tmp_path / source.name / "child"))["parents"] for source in (first, tmp_path / "copy")
    ]
    assert parents[0] == parents[1] == [{"relation": "resumed", "digest": describe(first).digest}]


def test_a_copy_of_the_backbone_knows_the_parents_too(tmp_path):
    import copy

    backbone = bert()
    AutoDeltaModel.from_finetuned(save(bert(), tmp_path / "first"), backbone_model=backbone)
    (delta,) = deltas_of(copy.deepcopy(backbone)).values()
    delta.save_finetuned(tmp_path / "second")

    assert [parent["relation"] for parent in config_of(tmp_path / "second")["parents"]] == ["resumed"]


def test_a_checkpoint_of_opendelta_is_named_by_the_digest_of_its_weights(tmp_path):
    name = "lora__roberta__default"
    backbone, source = backbone_of(facts_of(name)), OPENDELTA / name / "delta"
    AutoDeltaModel.from_finetuned(source, backbone_model=backbone, allow_pickle=True).save_finetuned(tmp_path)
    weights = hashlib.sha256((source / "pytorch_model.bin").read_bytes()).hexdigest()

    assert config_of(tmp_path)["parents"] == [
        {"relation": "converted", "digest": f"sha256:{weights}", "format": "opendelta"}
    ]


def test_the_same_checkpoint_has_the_same_digest_wherever_it_is_pushed_from(tmp_path):
    folder = resume(save(bert(), tmp_path / "first"), tmp_path / "second")
    one, other = describe(folder), checkpoint.read(folder).parent["digest"]

    assert one.digest == other
    assert {"time", "author"}.isdisjoint(one.config)


@pytest.mark.parametrize(
    ("parent", "clause"),
    [
        ({"relation": "cousin", "digest": DIGEST}, "relation must be one of"),
        ({"relation": "resumed"}, "digest"),
        ({"relation": "resumed", "digest": "sha256:1"}, "digest"),
        ({"relation": "resumed", "digest": DIGEST, "more": 1}, "must not contain"),
    ],
)
def test_a_parent_that_says_nothing_of_use_is_refused(parent, clause):
    with pytest.raises(ConfigError, match=clause):
        check_document({"format_version": 1, "delta_type": "lora", "parents": [parent]})


def test_the_config_of_a_delta_is_read_without_its_provenance(tmp_path):
    folder = resume(save(bert(), tmp_path / "first"), tmp_path / "second")
    document = json.loads((folder / "delta_config.json").read_bytes())

    assert "parents" not in LoraModel.config_class.from_dict(document).to_dict()


def test_a_delta_with_the_tensors_of_its_parent_is_not_pushed_beside_it_unless_the_user_insists(tmp_path):
    backbone, hub = bert(), Hub.open()
    first = LoraModel(backbone, lora_r=2)
    train(backbone)
    first.save_finetuned(tmp_path / "first")
    AutoDeltaModel.from_finetuned(tmp_path / "first", backbone_model=bert()).save_finetuned(tmp_path / "again")
    resume(tmp_path / "first", tmp_path / "resumed")
    assert hub.push(tmp_path / "again", "me/elsewhere").new  # its parent is not here
    hub.push(tmp_path / "first", "me/x")
    with pytest.raises(CheckpointError, match=r"has the tensors of the delta .* nothing was trained"):
        hub.push(tmp_path / "again", "me/x")
    (result,) = hub.push_many([tmp_path / "again"], "me")
    assert isinstance(result, CheckpointError)
    assert hub.push(tmp_path / "again", "me/x", allow_untrained=True).new
    assert hub.push(tmp_path / "resumed", "me/x").new
