"""A delta of a quantised backbone on the dense one, and the other way round: refused, or accepted after comparing the weights."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import save_file
from torch import nn

from deltahub import AutoDeltaModel, LoraModel
from deltahub.engine.fingerprint import fingerprint
from deltahub.errors import ConfigError, FingerprintMismatch

WIDTH = 64
KINDS = ("nf4", "nested", "int8")


class Backbone(nn.Module):
    """An embedding, a layer to be quantised, and a norm."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.layer, self.norm = nn.Embedding(4, WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(self.layer(self.embed(x)))


def dense(seed=0, dtype=torch.bfloat16):
    return Backbone(seed).to(dtype).eval()


def quantised(kind, backbone=None, compute_dtype=torch.bfloat16, threshold=0.0):
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    backbone = dense() if backbone is None else backbone
    weight, bias = backbone.layer.weight.detach(), backbone.layer.bias
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(WIDTH, WIDTH, has_fp16_weights=False, threshold=threshold, device="meta")
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
    else:
        options = {"quant_type": "nf4", "compress_statistics": kind == "nested"}
        layer = bnb.nn.Linear4bit(WIDTH, WIDTH, compute_dtype=compute_dtype, device="meta", **options)
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=layer, **options).to("cpu")
    layer.bias = bias
    backbone.layer = layer
    return backbone


def saved(folder, backbone):
    delta = LoraModel(backbone, lora_r=1, modified_modules=["layer"])
    delta.freeze_module()
    nn.init.normal_(next(iter(delta.parameters())))
    delta.save_finetuned(folder)
    delta.remove()
    return folder


def changed(backbone, name):
    with torch.no_grad():
        backbone.get_parameter(name).mul_(1.1)
    return backbone


def load(folder, backbone, check_hash="dequantised"):
    return AutoDeltaModel.from_finetuned(folder, backbone, check_hash=check_hash)


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_of_a_quantised_backbone_loads_on_the_dense_one_if_it_gives_the_same_codes(kind, tmp_path, caplog):
    saved(tmp_path, quantised(kind))
    with pytest.raises(FingerprintMismatch, match=r"recorded on bitsandbytes .* and this one is bfloat16") as refusal:
        load(tmp_path, dense(), True)
    assert refusal.value.level == "other quantisation"
    assert 'check_hash="dequantised"' in str(refusal.value)
    assert load(tmp_path, dense(), "structure").attached

    for dtype in (torch.bfloat16, torch.float32):
        caplog.clear()
        assert load(tmp_path, dense().to(dtype)).attached
        assert "1 quantised weights are those of the record, by their hashes" in caplog.text
        assert "quantisation changes a weight by 0.0" in caplog.text
    for name in ("layer.weight", "norm.weight", "layer.bias", "embed.weight"):
        with pytest.raises(FingerprintMismatch, match=rf"1 of 5 tensors differ after dequantisation: {name}"):
            load(tmp_path, changed(dense(), name))


def test_where_the_codes_cannot_be_made_again_the_recorded_values_are_compared(tmp_path, monkeypatch, caplog):
    saved(tmp_path, quantised("nf4"))
    monkeypatch.setattr("deltahub.engine.quantised.comparison.requantised", lambda *_: None)
    load(tmp_path, dense())
    assert "1 quantised weights agree with the recorded values within the error of quantisation" in caplog.text
    other = dense()
    other.layer.weight = Backbone(1).bfloat16().layer.weight
    with pytest.raises(FingerprintMismatch, match="its values differ by 1"):
        load(tmp_path, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_of_a_dense_backbone_loads_on_a_quantised_one_that_was_loaded_from_the_same_files(
    kind, tmp_path, caplog
):
    (tmp_path / "model").mkdir()
    save_file(dense().state_dict(), tmp_path / "model" / "model.safetensors")
    saved(tmp_path / "delta", dense())

    def loaded(backbone=None, folder="model"):
        backbone = quantised(kind, backbone)
        backbone.config = SimpleNamespace(_name_or_path=str(tmp_path / folder))
        return backbone

    with pytest.raises(FingerprintMismatch, match="recorded on bfloat16, and this one is bitsandbytes"):
        load(tmp_path / "delta", loaded(), True)
    load(tmp_path / "delta", loaded())
    assert "1 quantised weights are those of the record, by their hashes" in caplog.text
    caplog.clear()
    load(tmp_path / "delta", loaded(folder="elsewhere"))
    assert "1 quantised weights could be compared by their shape alone; 4 tensors that are not quantised" in caplog.text
    for name in ("layer.weight", "norm.weight"):
        with pytest.raises(FingerprintMismatch, match=rf"differ after dequantisation: {name}"):
            load(tmp_path / "delta", loaded(changed(dense(), name)))


def test_a_record_of_version_1_is_compared_without_the_buffers_of_integers_that_it_lacks(tmp_path, monkeypatch):
    def with_count(backbone):
        backbone.register_buffer("count", torch.zeros(1, dtype=torch.long))
        return backbone

    monkeypatch.setattr("deltahub.handle.saving.fingerprint", partial(fingerprint, version=1))
    saved(tmp_path, with_count(dense()))
    assert load(tmp_path, with_count(quantised("int8"))).attached
    with pytest.raises(FingerprintMismatch, match=r"norm\.weight \(other values\)"):
        load(tmp_path, with_count(quantised("int8", changed(dense(), "norm.weight"))))


def test_two_quantisations_of_one_backbone_are_compared_by_their_values(tmp_path, caplog):
    saved(tmp_path, quantised("nf4"))
    load(tmp_path, quantised("int8"))
    assert "recorded on bitsandbytes nf4, and this one is bitsandbytes int8" in caplog.text
    other = dense()
    other.layer.weight = Backbone(1).bfloat16().layer.weight
    with pytest.raises(FingerprintMismatch, match=r"its values differ by 1"):
        load(tmp_path, quantised("int8", other))


def test_a_setting_that_changes_the_outputs_is_another_backbone(tmp_path):
    saved(tmp_path, quantised("nf4"))
    with pytest.raises(FingerprintMismatch, match="compute_dtype is float32, expected unset in 1 layers") as refusal:
        load(tmp_path, quantised("nf4", compute_dtype=torch.float32), True)
    assert refusal.value.level == "other precision"
    difference = fingerprint(quantised("int8")).compare(fingerprint(quantised("int8", threshold=6.0)))
    assert difference.detail == "threshold is 6.0, expected 0.0 in 1 layers"


def test_the_record_is_the_same_before_and_after_a_forward_pass():
    for kind in KINDS:
        backbone = quantised(kind, compute_dtype=None)  # which the first input decides
        before = fingerprint(backbone)
        backbone(torch.arange(4))
        assert fingerprint(backbone) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_quantised_backbone_has_the_same_record(kind):
    backbone = quantised(kind)
    before = fingerprint(backbone)
    cpu_offload(backbone, execution_device=torch.device("cpu"))
    assert backbone.layer.weight.is_meta
    assert fingerprint(backbone).hash == before.hash


def test_dense_values_in_another_precision_are_compared_too(tmp_path):
    saved(tmp_path, dense())
    load(tmp_path, dense().float())
    with pytest.raises(FingerprintMismatch, match=r"norm\.weight \(other values\)"):
        load(tmp_path, changed(dense().float(), "norm.weight"))
    saved(tmp_path, dense(dtype=torch.float32))
    with pytest.raises(FingerprintMismatch, match="it is bfloat16, and recorded in float32, which cannot be compared"):
        load(tmp_path, dense())
    with pytest.raises(ConfigError, match='check_hash must be True, False, "structure" or "dequantised", got 1'):
        load(tmp_path, dense(), 1)


def test_a_backbone_of_another_structure_is_refused(tmp_path):
    saved(tmp_path, quantised("nf4"))
    backbone = dense()
    backbone.more = nn.Linear(1, 1)
    with pytest.raises(FingerprintMismatch, match="recorded on bitsandbytes nf4, and this one is bfloat16") as refusal:
        load(tmp_path, backbone)
    assert refusal.value.level == "incompatible"
