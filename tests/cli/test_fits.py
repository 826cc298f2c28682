"""list --fits says how each delta fits, for a folder and for a model in Hugging Face's cache; --near lists those that do not."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoints import LEAVES, save_checkpoint


@pytest.fixture
def backbone(run, tmp_path):
    """A delta was pushed; makes backbones that are as its own, or have other shapes."""
    assert run("push", save_checkpoint(tmp_path / "ckpt"), "acme/ner").exit_code == 0

    def made(folder=tmp_path / "backbone", dtype=np.float32, **shapes):
        folder.mkdir(parents=True)
        found = {leaf.name: leaf.shape for leaf in LEAVES} | {name.replace("_", "."): s for name, s in shapes.items()}
        save_file({name: np.zeros(shape, dtype) for name, shape in found.items()}, folder / "model.safetensors")
        return folder

    return made


def test_json_and_table_show_how_a_delta_fits(run, run_json, backbone):
    folder = backbone(dtype=np.float16)
    (entry,) = run_json("list", "--fits", folder)
    assert entry["fit"]["level"] == "other precision"
    assert "is float16, expected float32" in entry["fit"]["detail"]
    assert "other precision: " in run("list", "--fits", folder).stdout
    assert "fit" not in run_json("list")[0]


def test_deltas_that_do_not_fit_are_listed_with_the_reason_on_request(run, run_json, backbone):
    folder = backbone(embed_weight=(11, 4))
    assert run_json("list", "--fits", folder) == []
    (entry,) = run_json("list", "--fits", folder, "--near")
    assert entry["fit"] == {"level": "resized embeddings", "detail": "embed.weight is [11, 4], expected [10, 4]"}


def test_a_backbone_may_be_a_model_in_the_cache_of_hugging_face(run, run_json, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    backbone(tmp_path / "models--acme--bert" / "snapshots" / commit)
    (tmp_path / "models--acme--bert" / "refs").mkdir()
    (tmp_path / "models--acme--bert" / "refs" / "main").write_text(commit)
    assert [it["fit"]["level"] for it in run_json("list", "--fits", "acme/bert")] == ["same structure"]
    done = run("list", "--fits", "acme/other")
    assert done.exit_code == 1
    assert "neither the folder of a backbone nor a model in the cache of Hugging Face" in done.stderr


def test_near_alone_is_wrong_usage(run):
    done = run("list", "--near")
    assert done.exit_code == 2
    assert "--near needs --fits BACKBONE" in " ".join(done.stderr.split())
