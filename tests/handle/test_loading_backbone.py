from functools import partial

import pytest
import torch
from torch import nn

from deltahub import AutoDeltaModel, LoraModel, deltas_of
from deltahub.engine.fingerprint import fingerprint
from deltahub.errors import CheckpointError, ConfigError, FingerprintMismatch
from tests.backbones import (
    bert,
    bert_mlm,
    gpt2,
    logits_of,
    original,
    stir,
    train,
    untouched,
)


def save(folder, backbone):
    """Save a delta that trains nothing of the backbone itself."""
    delta = LoraModel(backbone, lora_r=2)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(folder)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "delta", bert())
    return tmp_path / "delta"


def load(folder, backbone=None, **options):
    backbone = backbone or bert()
    return AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **options)


class Renamed(nn.Module):
    """The same tensors under other names."""

    def __init__(self):
        super().__init__()
        self.model = bert()


def perturbed():
    """A backbone in which one number of one tensor is another."""
    backbone = bert()
    with torch.no_grad():
        backbone.bert.pooler.dense.weight[0, 0] += 0.25
    return backbone


@pytest.mark.parametrize(
    ("make", "level", "detail"),
    [
        (perturbed, "same structure, other weights", "1 of 41 tensors have other values: bert.pooler.dense.weight"),
        (lambda: bert().half(), "other precision", "is float16, expected float32"),
        (
            Renamed,
            "renamed",
            "missing bert.embeddings.LayerNorm.bias.* unexpected model.bert.embeddings.LayerNorm.bias",
        ),
        (lambda: original("bert"), "incompatible", r"is \[120, 32\], expected \[50, 16\]|is \[32\], expected \[16\]"),
        (gpt2, "incompatible", "missing bert.embeddings.* unexpected transformer.h.0"),
    ],
)
def test_a_different_backbone_is_refused_with_the_differences(folder, make, level, detail):
    backbone = make()

    with untouched(backbone), pytest.raises(FingerprintMismatch, match=detail) as caught:
        load(folder, backbone)

    assert caught.value.level == level
    assert f"trained on another backbone ({level})" in str(caught.value)
    assert "check_hash=False to attach it anyway" in str(caught.value)
    assert ('check_hash="structure"' in str(caught.value)) == (
        level in {"same structure, other weights", "other precision"}
    )


class Quantised(nn.Module):
    """A backbone in which a buffer of integers decides what comes out."""

    def __init__(self, code=1):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        nn.init.ones_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("codes", torch.tensor([code, 2], dtype=torch.int32))

    def forward(self, x):
        return self.linear(x) * self.codes


def test_a_backbone_with_other_codes_is_another_backbone(tmp_path):
    delta = LoraModel(Quantised(), lora_r=1, modified_modules=["linear"])
    delta.freeze_module()
    delta.save_finetuned(tmp_path)

    with pytest.raises(FingerprintMismatch, match="1 of 3 tensors have other values: codes"):
        load(tmp_path, Quantised(5))
    assert load(tmp_path, Quantised(5), check_hash="structure").attached


def test_a_delta_of_before_says_which_tensors_its_record_does_not_cover(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("deltahub.handle.saving.fingerprint", partial(fingerprint, version=1))
    delta = LoraModel(Quantised(), lora_r=1, modified_modules=["linear"])
    delta.freeze_module()
    delta.save_finetuned(tmp_path)

    load(tmp_path, Quantised(5))
    assert "does not cover buffers of integers: codes (1 in all) could not be compared" in caplog.text
    caplog.clear()
    save(tmp_path / "bert", bert())
    load(tmp_path / "bert")
    assert not caplog.text


def test_a_delta_of_before_loads_on_its_quantised_backbone_without_a_comparison_of_settings(
    tmp_path, monkeypatch, caplog
):
    def backbone(nbits=4):
        model = Quantised()
        model.linear.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
        model.linear.nbits = nbits
        return model

    monkeypatch.setattr("deltahub.handle.saving.fingerprint", partial(fingerprint, version=2))
    delta = LoraModel(backbone(), lora_r=1, modified_modules=["linear"])
    delta.freeze_module()
    delta.save_finetuned(tmp_path / "old")
    monkeypatch.undo()
    LoraModel(backbone(), lora_r=1, modified_modules=["linear"]).save_finetuned(tmp_path / "new")

    assert load(tmp_path / "old", backbone(8)).attached
    assert "does not cover the settings of its quantised layers, such as nbits" in caplog.text
    assert load(tmp_path / "new", backbone()).attached
    with pytest.raises(FingerprintMismatch, match="nbits is 8, expected 4 in 1 layers"):
        load(tmp_path / "new", backbone(8))


def test_resized_embeddings_are_refused(tmp_path):
    save(tmp_path, bert_mlm())
    backbone = bert_mlm()
    backbone.resize_token_embeddings(53, mean_resizing=False)

    with untouched(backbone), pytest.raises(FingerprintMismatch, match=r"is \[53, 16\], expected \[50, 16\]") as caught:
        load(tmp_path, backbone)
    assert caught.value.level == "resized embeddings"
    assert load(tmp_path, backbone, check_hash=False).attached


@pytest.mark.parametrize("make", [perturbed, lambda: bert(1), lambda: bert().bfloat16()])
def test_other_weights_of_the_same_structure_are_accepted_on_request(folder, make):
    backbone = make()
    before = logits_of(backbone)
    delta = load(folder, backbone, check_hash="structure")

    assert not torch.equal(before, logits_of(backbone))
    delta.detach()
    assert torch.equal(before, logits_of(backbone))


@pytest.mark.parametrize("make", [Renamed, gpt2])
def test_another_structure_is_not_accepted_as_the_same(folder, make):
    backbone = make()

    with untouched(backbone), pytest.raises(FingerprintMismatch):
        load(folder, backbone, check_hash="structure")


def test_no_check_is_a_warning(folder, caplog):
    backbone = bert(1)
    load(folder, backbone, check_hash=False)

    assert "The backbone was not checked (check_hash=False)" in caplog.text
    assert list(deltas_of(backbone)) == ["lora"]


def test_without_a_check_tensors_must_still_fit(folder):
    backbone = original("bert")

    with untouched(backbone), pytest.raises(CheckpointError, match=r"lora_A is \[2, 16\], expected \[2, 32\]"):
        load(folder, backbone, check_hash=False)


@pytest.mark.parametrize("value", ["strict", None, "True"])
def test_an_unknown_check_is_refused(folder, value):
    with pytest.raises(ConfigError, match='check_hash must be True, False, "structure" or "dequantised", got '):
        load(folder, bert(), check_hash=value)


def test_the_head_of_another_delta_does_not_make_it_another_backbone(folder, tmp_path):
    backbone = bert()
    with_head = LoraModel(backbone, name="with_head")
    with_head.freeze_module(exclude=["deltas", "classifier"])
    train(backbone)
    delta = load(folder, backbone)  # a check that must see the backbone's own head
    delta.save_finetuned(tmp_path / "again")

    assert not torch.equal(bert().classifier.weight, backbone.classifier.weight)
    assert load(tmp_path / "again", bert()).attached
