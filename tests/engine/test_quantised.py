"""Deltas on quantised layers: those of bitsandbytes and torchao where they are installed, and stand-ins of the same shape."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing._internal.two_tensor import TwoTensor

from deltahub import AutoDeltaModel, BitFitModel, IA3Model, LayerNormModel, LoraModel, deltas_of
from deltahub.engine.fingerprint import fingerprint
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.quantised.layer import Quantised
from deltahub.engine.weights import linear_weight
from deltahub.errors import CheckpointError, ConfigError, MergeError, TargetError
from deltahub.handle.merging import merged_copy
from tests.backbones import stir
from tests.quantised import REAL

WIDTH = 64


class Codes(nn.Module):
    """Keeps int8 codes as its parameter and a scale beside them, as bitsandbytes does."""

    def __init__(self, layer):
        super().__init__()
        self.in_features = self.out_features = WIDTH
        self.scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight * self.scale)


def wrapped(layer):
    """A plain layer whose weight is a tensor of tensors, as torchao makes it."""
    layer.weight = nn.Parameter(TwoTensor(layer.weight.detach(), layer.weight.detach()), requires_grad=False)
    layer.forward = lambda x: F.linear(x, layer.weight.a)
    return layer


QUANTISERS = {"codes": Codes, "wrapped": wrapped, **REAL}


class Backbone(nn.Module):
    """A norm, a layer to be quantised, and a head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 2)
        if seed:
            nn.init.normal_(self.layer.weight, generator=torch.Generator().manual_seed(seed))

    def forward(self, x):
        return self.head(self.layer(self.norm(x)))


@pytest.fixture(params=QUANTISERS)
def make(request):
    """Makes a backbone with a quantised layer: of one seed, always the same."""

    def make(seed=0):
        backbone = Backbone(seed)
        backbone.layer = QUANTISERS[request.param](backbone.layer)
        return backbone.eval()

    return make


X = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_a_lora_adds_its_update_trains_and_is_loaded_again(make, tmp_path):
    backbone = make()
    hidden = backbone.norm(X)
    plain = backbone.layer(hidden)
    delta = LoraModel(backbone, lora_r=2, lora_alpha=2, modified_modules=["layer"])
    assert torch.equal(backbone.layer(hidden), plain)
    stir(delta)
    a, b = (delta.state_dict()[f"layer.deltas.lora_{side}"] for side in "AB")
    assert torch.allclose(backbone.layer(hidden) - plain, hidden @ a.T @ b.T, atol=1e-5)

    delta.freeze_module()
    backbone(X).sum().backward()
    assert all(parameter.grad.count_nonzero() for parameter in delta.parameters())
    delta.save_finetuned(tmp_path)
    again = make()
    AutoDeltaModel.from_finetuned(tmp_path, again)
    assert torch.equal(again(X), backbone(X))


def test_reading_or_writing_quantised_codes_is_refused_and_changes_nothing(make):
    backbone = make()
    plain = backbone(X)
    if quantised(backbone.layer) is None:  # of an unknown kind
        with pytest.raises(TargetError, match="layer cannot hold a DoRA"):
            LoraModel(backbone, modified_modules=["layer"], use_dora=True)
    for model in (LoraModel, IA3Model, BitFitModel):
        delta = model(backbone, modified_modules=["layer"])
        stir(delta)
        with pytest.raises(ConfigError, match=r"layer\.weight cannot be trained: it is .* \(quantised"):
            delta.freeze_module(exclude=["deltas", "layer"])
        for merge in (delta.merge, lambda: merged_copy(backbone)):
            with pytest.raises(MergeError, match="layer"):
                merge()
        delta.remove()
    assert torch.equal(backbone(X), plain)


def test_a_weight_of_a_known_kind_is_read_as_the_layer_acts_and_quantised_again(make):
    layer = make().layer
    coded = quantised(layer)
    if coded is None:
        pytest.skip("of an unknown kind")
    values, acting = coded.values(), layer(X)
    assert values.shape == coded.shape == (WIDTH, WIDTH)
    assert torch.equal(linear_weight(layer), values)
    assert torch.allclose(X @ values.T, acting, atol=0.02)  # bitsandbytes' int8 rounds the inputs, too

    old = coded.swap(coded.quantise(2 * values))
    assert torch.allclose(quantised(layer).values(), 2 * values, atol=0.02)
    assert torch.allclose(layer(X), X @ quantised(layer).values().T, atol=0.2)
    coded.swap(old)
    assert torch.equal(layer(X), acting)


def test_a_merge_into_codes_quantises_again_if_asked_tells_the_error_and_is_undone_to_the_last_code(make, tmp_path):
    backbone = make()
    if (coded := quantised(backbone.layer)) is None:
        pytest.skip("of an unknown kind")
    plain, values = backbone(X), coded.values()
    delta = LoraModel(backbone, lora_r=2, modified_modules=["layer", "head"])
    stir(delta)
    acting = backbone(X)
    with pytest.raises(MergeError, match=r"merge\(requantise=True\).*merged_copy\(backbone, dtype="):
        delta.merge()
    assert torch.equal(backbone(X), acting)
    report = delta.merge(requantise=True)
    assert 1e-4 < report.relative["layer.weight"] < 0.15
    assert report.relative["head.weight"] < 1e-6
    assert 0 < (backbone(X) - acting).norm() < 0.2 * (acting - plain).norm()
    with pytest.raises(MergeError, match="merged into the codes of layer"):
        delta.save_finetuned(tmp_path / "delta")
    copied = copy.deepcopy(backbone)
    delta.unmerge()
    assert torch.equal(backbone(X), acting)
    assert torch.equal(quantised(backbone.layer).values(), values)
    deltas_of(copied)["lora"].unmerge()
    assert torch.equal(copied(X), acting)


def test_a_merged_copy_in_a_dtype_is_a_plain_model_with_the_dequantised_values(make):
    backbone = make()
    delta = LoraModel(backbone, lora_r=2, modified_modules=["layer"], use_dora=quantised(backbone.layer) is not None)
    stir(delta)
    acting = backbone(X)
    if quantised(backbone.layer) is None:
        with pytest.raises(MergeError, match="layer"):
            merged_copy(backbone, dtype=torch.float32)
        return
    with pytest.raises(MergeError, match="layer: its weight is quantised"):
        merged_copy(backbone)
    copied = merged_copy(backbone, dtype=torch.float32)
    assert type(copied.layer) is nn.Linear
    assert {*copied.state_dict()} == {*Backbone().state_dict()}
    assert torch.allclose(copied(X), acting, atol=0.01)  # bitsandbytes' int8 rounds the inputs, too
    half = merged_copy(backbone, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(backbone(X), acting)


def test_a_dora_dequantises_a_weight_once_for_each_forward_pass(monkeypatch):
    backbone = Backbone()
    backbone.layer = REAL["nf4"](backbone.layer)
    LoraModel(backbone, modified_modules=["layer"], lora_dropout=0.5, use_dora=True)
    reads = []
    values = Quantised.values
    monkeypatch.setattr(Quantised, "values", lambda self: reads.append(self) or values(self))
    backbone.train()(X).sum().backward()
    assert len(reads) == 1


def test_a_norm_beside_a_quantised_layer_is_merged(make):
    backbone = make()
    delta = LayerNormModel(backbone, modified_modules=["norm"])
    stir(delta)
    acting = backbone(X)
    delta.merge()
    assert torch.allclose(backbone(X), acting, atol=1e-5)


def test_a_weight_that_was_trained_whole_is_not_loaded_over_codes(make, tmp_path):
    delta = LoraModel(Backbone(), modified_modules=["head"])
    delta.freeze_module(exclude=["deltas", "layer"])
    delta.save_finetuned(tmp_path)
    backbone = make()
    plain = copy.deepcopy(backbone)(X)
    with pytest.raises(CheckpointError, match=r"layer\.weight cannot take the value that was trained: it is"):
        AutoDeltaModel.from_finetuned(tmp_path, backbone, check_hash=False)
    assert torch.equal(backbone(X), plain)


def test_backbones_with_other_codes_are_distinguished(make):
    assert fingerprint(make()).hash == fingerprint(make()).hash
    assert fingerprint(make()).hash != fingerprint(make(seed=2)).hash
