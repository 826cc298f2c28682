import inspect

import pytest
import torch

import deltahub
from deltahub import AdapterConfig, AutoDeltaConfig, AutoDeltaModel, BitFitModel, LoraConfig, LoraModel
from deltahub.errors import (
    CheckpointError,
    ConfigError,
    FingerprintMismatch,
    NotFoundError,
    ReferenceSyntaxError,
)
from tests.backbones import bert, logits_of, stir, untouched


def saved(folder, backbone, seed=2):
    """A saved delta, and the logits that it gives."""
    delta = LoraModel(backbone, lora_r=2)
    delta.freeze_module()
    stir(delta, seed)
    delta.save_finetuned(folder)
    return logits_of(backbone)


@pytest.fixture
def folder(tmp_path):
    saved(tmp_path / "delta", bert())
    return tmp_path / "delta"


def load(place, backbone, **options):
    return AutoDeltaModel.from_finetuned(place, backbone_model=backbone, **options)


# ----- configs -----


def test_the_config_fits_the_type():
    assert AutoDeltaConfig.from_dict({"delta_type": "adapter", "bottleneck_dim": 7}) == AdapterConfig(bottleneck_dim=7)
    assert AutoDeltaConfig.from_dict({"delta_type": "lora", "lora_r": 7}, lora_r=3) == LoraConfig(lora_r=3)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({}, "A config needs a delta_type: one of adalora, adapter, bitfit, .*lora"),
        ({"delta_type": "loar"}, "delta_type is 'loar', which this version does not know: did you mean 'lora'"),
        ({"delta_type": "magic"}, "known are: adalora, adapter, bitfit, .*lora"),
        (
            {"delta_type": "lora", "modified_moduls": ["q"]},
            "no option 'modified_moduls': did you mean 'modified_modules'",
        ),
        ({"delta_type": "lora", "lora_r": "8"}, "lora_r must be .*integer, got '8'"),
        ({"delta_type": "lora", "bottleneck_dim": 8}, "lora has no option 'bottleneck_dim'"),
    ],
)
def test_a_config_that_cannot_work_is_refused(document, why):
    backbone = bert()

    with pytest.raises(ConfigError, match=why):
        AutoDeltaConfig.from_dict(document)
    with untouched(backbone), pytest.raises(ConfigError, match=why):
        AutoDeltaModel.from_config(document, backbone)


def test_the_config_of_a_saved_delta_is_read_without_its_backbone(folder):
    config = AutoDeltaConfig.from_finetuned(folder, lora_dropout=0.5)

    assert (config.delta_type, config.lora_r, config.lora_dropout) == ("lora", 2, 0.5)
    assert config.backbone_class == "BertForSequenceClassification"


def test_a_fresh_delta_is_made_from_the_config_of_a_saved_one(folder):
    delta = AutoDeltaModel.from_config(AutoDeltaConfig.from_finetuned(folder), bert())

    assert isinstance(delta, LoraModel)
    assert delta.config.lora_r == 2


def test_the_right_class_is_made_from_a_config():
    assert isinstance(AutoDeltaModel.from_config({"delta_type": "bitfit"}, bert()), BitFitModel)
    assert AutoDeltaModel.from_config(LoraConfig(), bert(), lora_r=3, name="mine").name == "mine"


@pytest.mark.parametrize("cls", [AutoDeltaConfig, AutoDeltaModel])
def test_neither_is_instantiated(cls):
    with pytest.raises(TypeError, match=f"{cls.__name__} is not instantiated; use {cls.__name__}.from_"):
        cls()


# ----- references -----


@pytest.fixture
def published(tmp_path):
    """Two versions of a delta in the registry, and the logits that each gives."""
    first, second = (saved(tmp_path / name, bert(), seed) for seed, name in enumerate(("one", "two")))
    deltahub.push(tmp_path / "one", "me/sst2", aliases=["champion"])
    digest = deltahub.push(tmp_path / "two", "me/sst2", tags=["sst2"]).digest
    return {"v1": first, "v2": second, "champion": first, "latest": second, digest: second}


@pytest.mark.parametrize(
    "reference", ["me/sst2", "me/sst2@v1", "me/sst2@v2", "me/sst2@champion", "local:me/sst2@latest"]
)
def test_a_delta_is_loaded_by_name_version_or_alias(published, reference):
    backbone = bert()
    load(reference, backbone)

    assert torch.equal(published[reference.partition("@")[2] or "latest"], logits_of(backbone))


def test_a_delta_is_loaded_by_digest(published):
    digest, backbone = list(published)[-1], bert()
    load(f"me/sst2@{digest[:19]}", backbone)

    assert torch.equal(published[digest], logits_of(backbone))
    assert AutoDeltaConfig.from_finetuned("me/sst2@v1").lora_r == 2


def test_a_moved_alias_leads_to_another_version(published, tmp_path):
    deltahub.push(tmp_path / "two", "me/sst2", aliases=["champion"])
    backbone = bert()
    load("me/sst2@champion", backbone)

    assert torch.equal(published["v2"], logits_of(backbone))


def test_cache_dir_moves_the_cache_for_one_call(published, tmp_path):
    load("me/sst2", bert(), cache_dir=tmp_path / "elsewhere", force_download=True)

    assert list((tmp_path / "elsewhere").rglob("delta.safetensors"))


@pytest.mark.parametrize(
    ("reference", "error", "why"),
    [
        ("me/sst3", NotFoundError, "The nearest names are: me/sst2"),
        ("me/sst2@v9", NotFoundError, "v9"),
        ("nowhere:me/sst2", NotFoundError, "nowhere"),
        ("me/..", ReferenceSyntaxError, None),
        ("./me/sst2", CheckpointError, "There is no folder"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(published, reference, error, why):
    backbone = bert()

    with untouched(backbone), pytest.raises(error, match=why):
        load(reference, backbone)


def test_a_published_delta_still_belongs_to_its_backbone(published):
    backbone = bert(1)

    with untouched(backbone), pytest.raises(FingerprintMismatch):
        load("me/sst2", backbone)


def test_the_name_of_a_backbone_is_not_taken_for_the_backbone():
    with pytest.raises(
        ConfigError, match=r"backbone_model is of type str; expected a model of PyTorch\. Load it first"
    ):
        AutoDeltaModel.from_finetuned("acme/ner", backbone_model="bert-base-uncased")


def test_the_factory_has_only_what_it_can_run():
    assert {name for name in dir(AutoDeltaModel) if not name.startswith("_")} == {"from_config", "from_finetuned"}
    ours, theirs = AutoDeltaModel.from_finetuned, LoraModel.from_finetuned
    assert ours.__doc__ == theirs.__doc__
    assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters


def test_a_class_gets_no_dtype_unless_requested(monkeypatch):
    asked = {}
    monkeypatch.setattr(LoraModel, "from_config", classmethod(lambda cls, *_, **options: asked.update(options)))
    AutoDeltaModel.from_config(LoraConfig(), bert())
    assert asked == {"name": None}
