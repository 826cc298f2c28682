"""`deltahub check` loads a delta on a backbone, and records the backbone beside a delta that has no record."""

from __future__ import annotations

import peft
import pytest
import torch

from deltahub.handle import recording
from tests.backbones import bert

# PEFT asks transformers for what it renames.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of an adapter of PEFT, of its backbone, and of a backbone of the same shape with other weights."""
    root = tmp_path_factory.mktemp("check")
    backbone = bert()
    backbone.save_pretrained(root / "bert")
    with torch.no_grad():
        backbone.bert.pooler.dense.bias.add_(1)
    backbone.save_pretrained(root / "other")
    config = peft.LoraConfig(r=4, target_modules=["query"], init_lora_weights=False)
    peft.get_peft_model(bert(), config).save_pretrained(root / "adapter")
    return root


@pytest.fixture
def adapter(folders, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for path in (folders / "adapter").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_without_a_record_only_names_and_shapes_are_checked(run, run_json, folders, adapter):
    assert run_json("check", adapter, "--backbone", folders / "other")["verified"] is False
    assert "has no record to compare" in run("check", adapter, "--backbone", folders / "bert").stderr


def test_a_record_in_the_folder_refuses_another_backbone(run, run_json, folders, adapter):
    assert run_json("check", adapter, "--backbone", folders / "bert", "--record")["verified"] is True
    done = run("check", adapter, "--backbone", folders / "other")
    assert done.exit_code == 5
    assert "trained on another backbone" in done.stderr


def test_a_backbone_in_another_precision_is_compared_on_request(run, run_json, folders, adapter, tmp_path):
    run("check", adapter, "--backbone", folders / "bert", "--record")
    bert().double().save_pretrained(tmp_path / "double")
    assert run("check", adapter, "--backbone", tmp_path / "double").exit_code == 5
    assert run_json("check", adapter, "--backbone", tmp_path / "double", "--dequantised")["verified"] is True
    assert run("check", adapter, "--backbone", folders / "other", "--dequantised").exit_code == 5


def test_a_record_of_a_published_delta_is_its_next_version_with_the_same_tags(run, run_json, folders, adapter, caplog):
    run("push", adapter, "acme/sums", "--tags", "best")
    checked = run_json("check", "acme/sums", "--backbone", folders / "bert", "--record")

    assert checked["delta"] == "local:acme/sums@v2"
    assert not [record for record in caplog.records if "only their shapes are checked" in record.message]
    assert (
        run_json("show", "acme/sums")["tags"]
        == run_json("show", "acme/sums@v1")["tags"]
        == ["best", "lora", "transformers"]
    )
    assert run("check", "acme/sums", "--backbone", folders / "other").exit_code == 5
    assert [it["name"] for it in run_json("list", "--fits", folders / "bert")] == ["acme/sums"]


def test_the_backbone_is_recorded_by_a_push_too(run, run_json, folders, adapter):
    run("push", adapter, "acme/sums", "--backbone", folders / "bert")
    assert run("check", "acme/sums", "--backbone", folders / "bert").exit_code == 0
    assert run("check", "acme/sums", "--backbone", folders / "other").exit_code == 5


@pytest.mark.parametrize(
    "arguments", [["acme/sums@v1"], ["acme/sums", "--tags", "not a tag!"], ["acme/sums", "--to", "nowhere"]]
)
def test_a_refused_push_records_nothing(run, folders, adapter, arguments):
    assert run("push", adapter, *arguments, "--backbone", folders / "bert").exit_code != 0
    assert not (adapter / "backbone.json").exists()


def test_of_many_the_backbone_is_recorded_beside_those_that_fit(run, folders, adapter, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("push", adapter, tmp_path / "empty", "--namespace", "acme", "--backbone", folders / "bert")
    assert done.exit_code == 1
    assert "1 of 2 pushed." in done.stderr
    assert run("check", "acme/adapter", "--backbone", folders / "other").exit_code == 5


def test_a_record_is_added_to_the_version_that_was_pulled_although_its_alias_moved(
    run, run_json, folders, adapter, monkeypatch
):
    run("push", adapter, "acme/sums", "--alias", "prod", "--tags", "first")
    real = recording.load_backbone

    def moved_meanwhile(name):
        (adapter / "README.md").write_text("another card")
        run("push", adapter, "acme/sums", "--alias", "prod", "--tags", "second")
        return real(name)

    monkeypatch.setattr(recording, "load_backbone", moved_meanwhile)
    run_json("check", "acme/sums@prod", "--backbone", folders / "bert", "--record")
    shown = run_json("show", "acme/sums@v3")
    assert "first" in shown["tags"]
    assert "second" not in shown["tags"]


def test_a_folder_without_a_backbone_is_refused(run, adapter):
    done = run("check", adapter, "--backbone", adapter)
    assert done.exit_code == 1
    assert "no backbone" in " ".join(done.stderr.split())
