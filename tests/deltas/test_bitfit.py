import pytest
import torch
from torch import nn

from deltahub import BitFitModel
from deltahub.errors import TargetError
from tests.backbones import bert, llama, logits_of, original, stir, t5, untouched, vit


class Layers(nn.Module):
    """Layers of every kind, with and without a bias."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.bare = nn.Linear(4, 4, bias=False)
        self.norm = nn.LayerNorm(4)
        self.norm_bare = nn.LayerNorm(4, bias=False)
        self.rms = nn.RMSNorm(4)

    def forward(self, input_ids):
        return input_ids


@pytest.mark.parametrize("name", ["linear", "bare", "norm", "norm_bare", "rms"])
def test_every_layer_gets_a_bias_that_starts_at_zero(name):
    model, x = Layers(), torch.randn(3, 4)
    layer = model.get_submodule(name)
    before = layer(x)
    delta = BitFitModel(model, modified_modules=[name])
    assert torch.equal(before, layer(x))

    stir(delta)
    (bias,) = delta.parameters()
    assert torch.allclose(before + bias, layer(x))
    delta.detach()
    assert torch.equal(before, layer(x))


def test_a_convolution_gets_one_value_for_each_channel():
    backbone, x = vit(), torch.randn(1, 3, 8, 8)
    patches = backbone.vit.embeddings.patch_embeddings.projection
    before = patches(x)
    delta = BitFitModel(backbone, modified_modules=["patch_embeddings.projection"])
    stir(delta)

    (bias,) = delta.parameters()
    assert bias.shape == (16,)
    assert torch.allclose(before + bias[None, :, None, None], patches(x))


def test_the_backbones_own_bias_is_not_touched():
    backbone = bert()
    bias = backbone.bert.encoder.layer[0].attention.self.query.bias
    before = bias.detach().clone()
    delta = BitFitModel(backbone)
    delta.freeze_module()
    stir(delta)

    assert torch.equal(before, bias)
    assert not bias.requires_grad


def test_a_module_means_every_layer_with_a_bias_inside_it():
    delta = BitFitModel(bert(), modified_modules=["0.attention"])

    assert list(delta.insertions) == [
        f"bert.encoder.layer.0.attention.{name}"
        for name in ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    ]


def test_a_layer_that_is_meant_twice_gets_one_bias():
    delta = BitFitModel(bert(), modified_modules=["0.attention", "query", "attn"])

    assert len(delta.insertions) == 10
    assert len(set(delta.insertions)) == 10


@pytest.mark.parametrize(("make", "norm"), [(t5, "encoder.block.0.layer.0.layer_norm"), (llama, "model.norm")])
def test_norms_without_a_bias_are_trained_from_the_first_step(make, norm):
    # The original made these biases in the first forward pass, after the optimizer, and did not save them.
    backbone = make()
    logits = logits_of(backbone)
    delta = BitFitModel(backbone)

    assert f"{norm}.deltas.bias" in delta.state_dict()
    assert torch.equal(logits, logits_of(backbone))


def test_linear_layers_without_a_bias_start_without_a_change():
    # The original drew these biases at random, so that inserting the delta changed the output.
    delta = BitFitModel(t5())

    assert all(not parameter.any() for parameter in delta.parameters())


def test_vit_trains_its_biases():
    delta = BitFitModel(vit())

    assert any("mlp.fc1" in name for name in delta.insertions)


def test_a_module_without_any_layer_inside_is_refused():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Dropout()

    backbone = bert()
    backbone.add_module("empty", Empty())

    with (
        untouched(backbone),
        pytest.raises(TargetError, match="empty is a Empty without a layer that has a bias inside"),
    ):
        BitFitModel(backbone, modified_modules=["query", "empty"])


def test_the_arguments_have_the_order_of_opendelta():
    delta = BitFitModel(original("bert"), ["attention"], ["layer.1"], ["deltas", "classifier"], False)

    assert delta.config.unfrozen_modules == ("deltas", "classifier")
    assert not any("layer.1" in name for name in delta.insertions)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(3, 4, 1), torch.ones(2, 3, 4, 4)),
        (nn.BatchNorm1d(4), torch.ones(2, 4)),
        (nn.BatchNorm1d(4), torch.ones(2, 4, 4)),
        (nn.BatchNorm2d(4), torch.ones(2, 4, 4, 4)),
        (nn.GroupNorm(2, 4), torch.ones(2, 4, 4, 4)),
        (nn.InstanceNorm1d(4), torch.ones(4, 4)),
    ],
)
def test_a_bias_is_added_to_the_channels_wherever_they_are(layer, inputs):
    backbone = nn.ModuleDict({"layer": layer}).eval()
    before = layer(inputs)
    delta = BitFitModel(backbone, modified_modules=["layer"])
    with torch.no_grad():
        next(delta.parameters()).copy_(torch.arange(4.0))

    dimension = {"InstanceNorm1d": 0}.get(type(layer).__name__, 1)
    added = (layer(inputs) - before).movedim(dimension, -1)
    assert torch.allclose(added, torch.arange(4.0).expand_as(added), atol=1e-5)


def test_modules_excluded_inside_an_addressed_one_get_no_bias():
    delta = BitFitModel(bert(), modified_modules=["0.attention"], exclude_modules=["LayerNorm"])

    assert [address.rpartition(".")[2] for address in delta.insertions] == ["query", "key", "value", "dense"]


def test_a_causal_mask_called_bias_is_none():
    backbone = nn.ModuleDict({"attention": nn.ModuleDict({"query": nn.Linear(2, 2)})})
    backbone["attention"].register_buffer("bias", torch.ones(2, 2, dtype=torch.bool))

    assert list(BitFitModel(backbone, modified_modules=["attention"]).insertions) == ["attention.query"]
