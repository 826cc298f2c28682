"""A record of its backbone beside an adapter of PEFT makes it as safe as a delta saved by DeltaHub."""

from __future__ import annotations

import json

import peft
import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel, record_backbone
from deltahub.checkpoint.from_files import describe
from deltahub.errors import CheckpointError, ConfigError, FingerprintMismatch
from deltahub.handle.recording import load_backbone
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


def test_a_record_of_another_backbone_is_kept_and_the_new_one_refused(adapter):
    folder, _ = adapter
    record_backbone(folder, bert())
    before = (folder / "backbone.json").read_bytes()
    record_backbone(folder, bert())
    with pytest.raises(FingerprintMismatch):
        record_backbone(folder, changed(bert()))
    assert (folder / "backbone.json").read_bytes() == before


def test_a_delta_of_deltahub_has_its_own_record(tmp_path):
    LoraModel(bert(), modified_modules=["query"]).save_finetuned(tmp_path)
    with pytest.raises(ConfigError, match="saved by DeltaHub"):
        record_backbone(tmp_path, bert())


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    bert().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"architectures": ["BertForPreTraining"]}, "has no values for cls"),  # transformers would draw them at random
        ({"hidden_size": 64}, "holds no backbone"),
        ({"hidden_size": "large"}, "holds no backbone"),
    ],
)
def test_a_backbone_without_all_of_its_weights_is_refused(bert_folder, tmp_path, wrong, sentence):
    _changed(bert_folder, tmp_path, wrong)
    with pytest.raises(CheckpointError, match=sentence):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("architecture", ["pipeline", "logging", 3])
def test_an_architecture_that_is_not_a_model_is_passed_over(bert_folder, tmp_path, architecture):
    _changed(bert_folder, tmp_path, {"architectures": [architecture]})
    assert type(load_backbone(str(tmp_path))).__name__ == "BertModel"


def _changed(folder, to, options):
    """Copy a backbone with other values in its config."""
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **options}))
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
