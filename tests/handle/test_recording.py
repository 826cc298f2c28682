"""A record of its backbone beside an adapter of PEFT makes it as safe as a delta saved by DeltaHub."""

from __future__ import annotations

import peft
import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel, record_backbone
from deltahub.checkpoint.from_files import describe
from deltahub.errors import ConfigError, FingerprintMismatch
from deltahub.registry.entries import record_of
from tests.backbones import bert, logits_of

# PEFT asks transformers for what it renames.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def adapter(tmp_path):
    """The folder of an adapter with a head that it replaces, and its logits in PEFT."""
    config = peft.LoraConfig(r=4, target_modules=["query"], modules_to_save=["classifier"], init_lora_weights=False)
    model = peft.get_peft_model(bert(), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits_of(model)


def changed(backbone):
    with torch.no_grad():
        backbone.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    return backbone


def test_it_loads_on_its_backbone_and_is_refused_on_any_other(adapter):
    folder, logits = adapter
    names = {path.name for path in folder.iterdir()}
    identity = record_backbone(folder, bert())
    backbone = bert()
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)

    assert torch.allclose(logits_of(backbone), logits, atol=1e-6)
    assert {path.name for path in folder.iterdir()} == names | {"backbone.json"}
    with pytest.raises(FingerprintMismatch) as refusal:
        AutoDeltaModel.from_finetuned(folder, backbone_model=changed(bert()))
    assert refusal.value.expected == identity.hash


@pytest.mark.parametrize("recorded_on", ["its own head", "another head"])
def test_the_tensors_that_it_brings_do_not_count_changed_or_not(adapter, recorded_on):
    folder, logits = adapter
    other = bert()
    torch.nn.init.normal_(other.classifier.weight)
    first, second = (bert(), other) if recorded_on == "its own head" else (other, bert())
    identity = record_backbone(folder, first)
    AutoDeltaModel.from_finetuned(folder, backbone_model=second)

    assert torch.allclose(logits_of(second), logits, atol=1e-6)
    assert not [leaf.name for leaf in identity.leaves if leaf.name.startswith("classifier.")]


def test_structure_alone_can_be_compared(adapter):
    folder, _ = adapter
    record_backbone(folder, bert())
    AutoDeltaModel.from_finetuned(folder, backbone_model=changed(bert()), check_hash="structure")


def test_the_record_belongs_to_the_delta_that_is_pushed(adapter):
    folder, _ = adapter
    before = describe(folder)
    identity = record_backbone(folder, bert())
    manifest = describe(folder)

    assert manifest.config["backbone_hash"] == identity.hash
    assert (record_of(before), record_of(manifest) is None) == (None, False)
    assert {entry.path for entry in manifest.files} - {entry.path for entry in before.files} == {"backbone.json"}


def test_an_adapter_that_does_not_fit_gets_no_record(adapter):
    folder, _ = adapter
    with pytest.raises(Exception, match="layer"):
        record_backbone(folder, bert(num_hidden_layers=1))
    assert not (folder / "backbone.json").exists()


def test_a_delta_of_deltahub_has_its_own_record(tmp_path):
    LoraModel(bert(), modified_modules=["query"]).save_finetuned(tmp_path)
    with pytest.raises(ConfigError, match="saved by DeltaHub"):
        record_backbone(tmp_path, bert())
