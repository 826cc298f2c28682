"""A probe kept with a delta proves on loading that the delta acts, and acts as it did when it was saved."""

from __future__ import annotations

import json

import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel
from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import CheckpointError, ConfigError, ProbeError
from deltahub.handle.probe import Probe
from tests.backbones import bert, logits_of
from tests.handle.saved import trained

BATCH = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}


@pytest.fixture
def folder(tmp_path):
    """A delta saved with a probe, from a backbone in training mode."""
    backbone = bert()
    delta = trained(backbone)
    backbone.train()
    delta.save_finetuned(tmp_path / "delta", probe=BATCH)
    assert all(module.training for module in backbone.modules())
    return tmp_path / "delta"


def load(folder, backbone, **options):
    return AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, check_probe=True, **options)


def test_a_delta_that_acts_the_same_is_loaded(folder):
    load(folder, bert())
    assert "probe.safetensors" in {entry.path for entry in describe(folder).files}


def test_another_backbone_is_found_though_its_fingerprint_is_not_checked(folder):
    backbone = bert(seed=1)
    before = logits_of(backbone)
    with pytest.raises(ProbeError, match="differ by"):
        load(folder, backbone, check_hash=False)
    assert torch.equal(logits_of(backbone), before)


def test_a_delta_without_its_effect_is_found(folder):
    saved = AutoDeltaModel.from_finetuned(folder, backbone_model=bert()).state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in saved.items() if ".deltas." in name}
    with pytest.raises(ProbeError):
        load(folder, bert(), state_dict={**saved, **zeros})


def test_a_delta_without_an_effect_is_not_saved_with_a_probe(tmp_path):
    with pytest.raises(CheckpointError, match="changes no output"):
        LoraModel(bert()).save_finetuned(tmp_path / "delta", probe=BATCH)
    assert not (tmp_path / "delta").exists()


def test_outputs_of_several_deltas_are_not_those_of_one(folder, tmp_path):
    backbone = bert()
    LoraModel(backbone)
    with pytest.raises(ConfigError, match=r"detach\(\)"):
        load(folder, backbone)
    with pytest.raises(ConfigError, match=r"detach\(\)"):
        trained(backbone).save_finetuned(tmp_path / "other", probe=BATCH)


def test_a_delta_without_a_probe_cannot_be_proved(tmp_path):
    trained(bert()).save_finetuned(tmp_path)
    with pytest.raises(CheckpointError, match="holds no probe"):
        load(tmp_path, bert())


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ({}, "got none"),
        ({"input_ids": [[1, 2]]}, "got input_ids"),
        ({"input_ids": torch.ones(300_000, dtype=torch.long)}, "Pass fewer examples"),
    ],
)
def test_inputs_that_are_not_a_few_tensors_by_name_are_refused(tmp_path, batch, sentence):
    with pytest.raises(ConfigError, match=sentence):
        trained(bert()).save_finetuned(tmp_path, probe=batch)


def test_a_probe_of_another_file_is_refused_by_its_digest(folder):
    (folder / "probe.safetensors").write_bytes(b"other")
    with pytest.raises(Exception, match=r"probe\.safetensors is damaged"):
        load(folder, bert())
    assert "probe.safetensors" in json.loads((folder / "delta_config.json").read_text())["files"]


def test_half_precision_is_compared_with_its_own_tolerance(tmp_path):
    backbone = bert().bfloat16()
    trained(backbone).save_finetuned(tmp_path, probe=BATCH)
    load(tmp_path, bert().bfloat16())


@pytest.mark.parametrize(
    ("acting", "plain"),
    [([1.0], [1.0]), ([1.0], [float("nan")]), ([float("inf")], [1.0]), (1.0, 2.0), ([1.0, 2.0], [1.0]), ([], [])],
)
def test_a_probe_that_proves_no_effect_is_refused(acting, plain):
    data = Probe({"input_ids": BATCH["input_ids"]}, torch.tensor(acting), torch.tensor(plain)).to_bytes()
    with pytest.raises(CheckpointError):
        Probe.from_bytes(data, "probe.safetensors")


@pytest.mark.parametrize("inputs", [{"pixel_values": torch.ones(1, 3)}, {"input_ids": torch.ones(1, 4)}])
def test_inputs_that_the_backbone_does_not_take_are_one_error(tmp_path, inputs):
    with pytest.raises(ConfigError, match="does not take the inputs of the probe"):
        trained(bert()).save_finetuned(tmp_path, probe=inputs)
