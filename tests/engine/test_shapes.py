import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from deltahub import AdapterModel, LoraModel
from deltahub.engine.dummy_inputs import possible_inputs, pseudo_inputs
from deltahub.engine.shapes import is_conv1d, known_width, linear_shape, meta_copy, output_widths
from deltahub.errors import TargetError
from tests.backbones import BACKBONES, bert, gpt2, original, t5, untouched, vit
from tests.engine.families import SIZES, family


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(3, 5), (3, 5)),
        (Conv1D(5, 3), (3, 5)),
        (nn.Embedding(7, 5), (7, 5)),
        (nn.Linear(3, 5, bias=False), (3, 5)),
    ],
)
def test_a_linear_layer_tells_its_shape(module, expected):
    assert expected == linear_shape("layer", module)
    assert known_width(module) == 5


@pytest.mark.parametrize(
    ("module", "expected"), [(nn.LayerNorm(5), 5), (nn.RMSNorm(5), 5), (nn.Dropout(), None), (nn.Sequential(), None)]
)
def test_a_norm_tells_its_width_and_others_do_not(module, expected):
    assert expected == known_width(module)


def test_conv1d_is_distinguished_from_a_linear_layer():
    assert is_conv1d(Conv1D(5, 3))
    assert not is_conv1d(nn.Linear(3, 5))


def test_lora_on_a_module_that_is_not_linear_names_a_linear_layer_inside():
    backbone = bert()

    with untouched(backbone), pytest.raises(TargetError) as caught:
        LoraModel(backbone, modified_modules=["0.attention"])

    assert "is a BertAttention; expected a Linear, a Conv1D or an Embedding" in str(caught.value)
    assert "Address bert.encoder.layer.0.attention.self.query instead" in str(caught.value)


def test_lora_on_a_norm_has_no_layer_to_name():
    with pytest.raises(TargetError, match=r"is a LayerNorm; expected a Linear, a Conv1D or an Embedding\.$"):
        LoraModel(bert(), modified_modules=["0.output.LayerNorm"])


@pytest.mark.parametrize(
    ("make", "name", "expected"),
    [
        (bert, "bert.encoder.layer.0.attention", 16),
        (bert, "bert.encoder.layer.0.intermediate", 24),
        (gpt2, "transformer.h.1.mlp", 16),
        (t5, "decoder.block.1.layer.1", 16),
        (t5, "encoder.block.0.layer.0.SelfAttention", 16),
        (vit, "vit.layers.0", 16),
    ],
)
def test_a_module_that_does_not_tell_its_width_is_watched_in_a_pseudo_forward(make, name, expected):
    backbone = make()

    with untouched(backbone):
        assert output_widths(backbone, {name: backbone.get_submodule(name)}) == {name: expected}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_pseudo_forward_uses_no_randomness(name):
    backbone = BACKBONES[name]().train()
    state = torch.get_rng_state()
    kinds = ("Layer", "Block")
    blocks = {
        name: m for name, m in backbone.named_modules() if type(m).__name__.endswith(kinds) and list(m.children())
    }

    with untouched(backbone):
        widths = output_widths(backbone, blocks)

    assert set(widths.values()) <= {16, 24}
    assert torch.equal(state, torch.get_rng_state())


def test_a_meta_copy_has_shapes_and_no_values():
    backbone = original("bert")
    twin = meta_copy(backbone)

    assert {name: p.shape for name, p in backbone.named_parameters()} == {
        n: p.shape for n, p in twin.named_parameters()
    }
    assert all(tensor.is_meta for tensor in [*twin.parameters(), *twin.buffers()])


class Head(nn.Module):
    """A part that the model's own forward never calls."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, x):
        return self.inner(x)


class Odd(nn.Module):
    """A model that takes no input_ids."""

    def __init__(self, fail):
        super().__init__()
        self.head, self.fail = Head(), fail

    def forward(self, input_ids):
        if self.fail:
            msg = "no such input"
            raise ValueError(msg)
        return input_ids


@pytest.mark.parametrize(("fail", "why"), [(True, "failed: no such input"), (False, "never called it")])
def test_a_width_that_nothing_tells_is_an_error_that_says_why(fail, why):
    backbone = Odd(fail)

    with untouched(backbone), pytest.raises(TargetError) as caught:
        AdapterModel(backbone, modified_modules=["head"])

    assert "The width of head (Head) is not known" in str(caught.value)
    assert why in str(caught.value)
    assert "Address a layer inside it" in str(caught.value)


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"openai", "resnet"}))
def test_the_width_of_a_block_is_found_in_models_of_every_kind(name):
    backbone = family(name)
    blocks = {n: m for n, m in backbone.named_modules() if n.endswith(".0") and list(m.children())}
    blocks = {n: m for n, m in blocks.items() if type(m).__name__.endswith(("Layer", "Block"))}
    blocks = {n: m for n, m in blocks.items() if "Conv" not in type(m).__name__}  # their channels are not the last

    with untouched(backbone):
        assert all(width in {8, 16} for width in output_widths(backbone, blocks).values())


def test_a_block_that_returns_a_list_tells_no_width():
    backbone = family("openai")

    with pytest.raises(TargetError, match="The target returns a list"):
        output_widths(backbone, {"h.0": backbone.get_submodule("h.0")})


def test_pseudo_inputs_have_as_many_rows_and_tokens_as_asked_for():
    assert {key: tuple(t.shape) for key, t in pseudo_inputs(t5(), batch=3, length=5).items()} == {
        "input_ids": (3, 5),
        "decoder_input_ids": (3, 5),
    }


def test_a_model_of_two_kinds_of_input_is_tried_with_one_and_with_both():
    tried = [set(inputs) for inputs in possible_inputs(family("clip"))]

    assert {"input_ids"} in tried
    assert {"input_ids", "pixel_values"} in tried


@pytest.mark.parametrize(
    ("name", "module", "expected"),
    [
        ("longformer", "encoder.layer.0.attention", 16),  # its forward cannot run without values
        ("electra", "encoder.layer.0.attention", 16),
        ("mixtral", "layers.0.mlp", 16),
        ("clip", "vision_model.encoder.layers.0.mlp", 16),
    ],
)
def test_an_attention_or_a_feed_forward_tells_its_width_by_its_last_layer(name, module, expected):
    backbone = family(name)

    assert output_widths(backbone, {module: backbone.get_submodule(module)}) == {module: expected}
