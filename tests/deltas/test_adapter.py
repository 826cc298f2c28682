import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from deltahub import AdapterModel
from deltahub.deltas.adapter import activation
from deltahub.errors import AddressError, ConfigError, TargetError
from tests.backbones import bert, gpt2, logits_of, stir, t5

ADDRESS = "bert.encoder.layer.0.output.dense"


def test_the_adapter_adds_up_act_down_of_the_output():
    backbone = bert()
    delta = AdapterModel(backbone, bottleneck_dim=3, non_linearity="tanh", modified_modules=["0.output.dense"])
    stir(delta)
    parts = {name.rpartition(".deltas.")[2]: parameter for name, parameter in delta.named_parameters()}
    layer = backbone.get_submodule("bert.encoder.layer.0.output.dense")
    x = torch.randn(2, 24)
    found = layer(x)
    delta.detach()
    h = layer(x)
    inner = torch.tanh(h @ parts["down_proj.weight"].T + parts["down_proj.bias"])

    assert torch.allclose(h + inner @ parts["up_proj.weight"].T + parts["up_proj.bias"], found, atol=1e-6)


def test_weights_start_small_and_biases_at_zero():
    torch.manual_seed(0)
    delta = AdapterModel(bert(), bottleneck_dim=200, modified_modules=["0.attention.output.dense"])

    for name, parameter in delta.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert 0.009 < parameter.std() < 0.011


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", torch.relu),
        ("tanh", torch.tanh),
        ("swish", nn.functional.silu),
        ("gelu_orig", nn.functional.gelu),
        ("leakyrelu", nn.functional.leaky_relu),
        ("gelu_new", lambda x: nn.functional.gelu(x, approximate="tanh")),
        ("silu", nn.functional.silu),
        ("relu2", lambda x: torch.relu(x) ** 2),
    ],
)
def test_activations_have_the_names_of_the_original_and_of_transformers(name, expected):
    x = torch.linspace(-3, 3, 13)

    assert torch.allclose(expected(x), activation(name)(x))


def test_an_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"non_linearity 'rleu' is unknown: choose one of .*relu"):
        activation("rleu")


@pytest.mark.parametrize(
    ("make", "module"),
    [(t5, "encoder.block.0.layer.0"), (bert, "bert.encoder.layer.1.attention"), (gpt2, "transformer.h.0.attn")],
)
def test_a_module_that_returns_a_tuple_can_hold_an_adapter(make, module):
    backbone = make()
    logits = logits_of(backbone)
    delta = AdapterModel(backbone, bottleneck_dim=3, modified_modules=[module])
    stir(delta)

    assert not torch.equal(logits, logits_of(backbone))
    delta.detach()
    assert torch.equal(logits, logits_of(backbone))


def test_a_module_that_returns_a_model_output_can_hold_an_adapter():
    class Encoder(nn.Module):
        def forward(self, input_ids):
            hidden = torch.ones(*input_ids.shape, 6)
            return BaseModelOutput(last_hidden_state=hidden, hidden_states=(hidden,))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder()

        def forward(self, input_ids):
            return self.encoder(input_ids)

    model, ids = Model(), torch.zeros(1, 2, dtype=torch.long)
    stir(AdapterModel(model, bottleneck_dim=3, modified_modules=["encoder"]))
    output = model(ids)

    assert isinstance(output, BaseModelOutput)
    assert not torch.equal(torch.ones(1, 2, 6), output.last_hidden_state)
    assert torch.equal(torch.ones(1, 2, 6), output.hidden_states[0])


def test_two_adapters_on_one_module_act_one_after_the_other():
    backbone = bert()
    first, second = (AdapterModel(backbone, bottleneck_dim=3, modified_modules=["0.output.dense"]) for _ in range(2))
    stir(first, 1)
    stir(second, 2)
    layer, x = backbone.get_submodule(ADDRESS), torch.randn(2, 24)
    both = layer(x)
    first.detach()
    second.detach()

    h = layer(x)
    for delta in (first, second):
        h = delta.insertions[ADDRESS].after(None, (), {}, h)
    assert torch.equal(h, both)


def test_the_arguments_have_the_order_of_opendelta():
    delta = AdapterModel(bert(), 4, "relu", ["attention"], ["layer.1"], ["deltas", "classifier"], False)

    assert (delta.config.bottleneck_dim, delta.config.non_linearity) == (4, "relu")
    assert delta.config.exclude_modules == ("layer.1",)
    assert list(delta.insertions) == ["bert.encoder.layer.0.attention"]


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)])
def test_a_layer_whose_channels_are_not_last_is_refused(layer):
    with pytest.raises(TargetError, match="whose channels are not the last dimension"):
        AdapterModel(nn.ModuleDict({"layer": layer}), modified_modules=["layer"])


def test_at_input_the_result_is_added_before_the_module():
    backbone = bert()
    delta = AdapterModel(backbone, bottleneck_dim=3, at_input=True, modified_modules=["0.output.LayerNorm"])
    stir(delta)
    norm = backbone.get_submodule("bert.encoder.layer.0.output.LayerNorm")
    x = torch.randn(2, 5, norm.normalized_shape[0])
    found = norm(x)
    (insertion,) = delta.insertions.values()
    delta.detach()

    assert torch.allclose(norm(x + insertion.update(norm(x))), found, atol=1e-6)


def test_at_input_needs_a_module_that_keeps_the_width():
    backbone = bert()
    AdapterModel(backbone, bottleneck_dim=3, at_input=True, modified_modules=["0.intermediate.dense"])

    with pytest.raises(TargetError, match="at_input adds to the input of a Linear"):
        logits_of(backbone)


def test_an_address_of_bottleneck_pattern_that_matches_nothing_is_refused():
    with pytest.raises(AddressError, match="It is in bottleneck_pattern"):
        AdapterModel(bert(), modified_modules=["0.output.dense"], bottleneck_pattern={"7.output.dense": 2})
