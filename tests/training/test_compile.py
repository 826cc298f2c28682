"""torch.compile: one graph through backbone and delta, in training too."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, LoraModel, PrefixModel, SoftPromptModel, deltas_of
from deltahub.engine.insertion import Insertion
from tests.backbones import bert, equal, inputs_for, llama, logits_of, stir, tensors_of, train
from tests.training.matrix import HEADED, KINDS, put_on, require_carries_over, train_plainly


def one_block() -> nn.Module:
    """A BERT of one block that knows its problem: it would learn that in the first step, and be compiled again for the second."""
    return bert(num_hidden_layers=1, problem_type="single_label_classification")


# The compiler looks at the gradient of every tensor that it meets, of one that a soft prompt has made too; torch warns of that.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_backbone_trains_as_it_does_without(kind, tmp_path):
    plain, backbone = one_block(), one_block()
    put_on(plain, kind, train=HEADED)
    delta = put_on(backbone, kind, train=HEADED)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)

    expected = train_plainly(plain, 3)
    assert expected == pytest.approx(train_plainly(backbone, 3, call=compiled), abs=1e-5)
    assert len(set(expected)) == 3
    require_carries_over(delta, tmp_path, one_block)


def wrap_blocks(backbone: nn.Module) -> None:
    """Compile the blocks of a Llama one by one, as is done where compiling the whole takes too long."""
    for number, block in enumerate(backbone.model.layers):
        backbone.model.layers[number] = torch.compile(block, backend="eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("first", ["delta", "compiling"])
def test_a_delta_on_blocks_that_are_compiled_one_by_one_is_like_any(first, tmp_path):
    plain, backbone = llama(), llama()
    expected = LoraModel(plain, lora_r=2, modified_modules=["q_proj", "v_proj"])
    stir(expected)
    if first == "compiling":
        wrap_blocks(backbone)
    delta = LoraModel(backbone, lora_r=2, modified_modules=["q_proj", "v_proj"])
    if first == "delta":
        wrap_blocks(backbone)
    stir(delta)
    delta.freeze_module(exclude=["deltas", "layers.0.input_layernorm", "lm_head"])
    assert torch.allclose(logits_of(plain), logits_of(backbone), atol=1e-5)
    train(backbone)

    trained = logits_of(backbone)
    delta.save_finetuned(tmp_path)
    fresh = llama()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, fresh)
    assert torch.allclose(trained, logits_of(fresh), atol=1e-5)
    assert {
        "model.layers.0.self_attn.q_proj.deltas.lora_A",
        "model.layers.0.input_layernorm.weight",
    } <= delta.state_dict().keys()
    assert equal(dict(sorted(delta.state_dict().items())), dict(sorted(loaded.state_dict().items())))
    delta.detach()
    assert torch.allclose(logits_of(llama()), logits_of(backbone), atol=1e-5)


@pytest.mark.slow
def test_a_delta_on_compiled_blocks_merges_and_comes_off():
    backbone = llama(num_hidden_layers=1)
    wrap_blocks(backbone)
    before = tensors_of(backbone)
    delta = LoraModel(backbone, lora_r=2)
    stir(delta)
    acting = logits_of(backbone)

    delta.merge()
    assert torch.allclose(acting, logits_of(backbone), atol=1e-4)
    delta.unmerge()
    delta.remove()
    assert equal(before, tensors_of(backbone))
    assert torch.allclose(logits_of(llama(num_hidden_layers=1)), logits_of(backbone), atol=1e-5)


def test_the_handles_are_found_on_a_compiled_backbone():
    backbone = llama()
    delta = LoraModel(backbone)

    assert deltas_of(torch.compile(backbone, backend="eager"))["lora"].backbone_model is delta.backbone_model


METHODS = {
    "activation": lambda backbone: AdapterModel(backbone, modified_modules=["act_fn"]),
    "lora": LoraModel,
    "prefix": lambda backbone: PrefixModel(backbone, prefix_token_num=2, embed_dim=3, mid_dim=3),
    "soft_prompt": lambda backbone: SoftPromptModel(backbone, soft_token_num=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS)
def test_a_graph_of_one_backbone_is_not_taken_for_another_that_carries_a_delta(kind):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain, backbone = llama(num_hidden_layers=1), llama(num_hidden_layers=1)
    for model in (plain, backbone):
        model.compile(backend=count)
    before = logits_of(plain)
    assert torch.equal(before, logits_of(backbone))
    delta = METHODS[kind](backbone)
    stir(delta)

    acting = logits_of(backbone)
    assert torch.allclose(acting, backbone._call_impl(**inputs_for(backbone)).logits, atol=1e-5)
    assert acting.shape != before.shape or not torch.allclose(acting, before, atol=1e-3)
    made = len(graphs)
    assert torch.equal(before, logits_of(plain))
    assert len(graphs) == made  # nothing of the plain one was compiled again
    delta.remove()
    assert torch.equal(before, logits_of(backbone))


@pytest.mark.slow
def test_the_second_hook_at_a_module_is_seen_too():
    backbone = llama(num_hidden_layers=1)
    backbone.compile(backend="eager")
    stir(AutoDeltaModel.from_config({"delta_type": "lora", "modified_modules": ["down_proj"]}, backbone))
    one = logits_of(backbone)
    stir(
        AutoDeltaModel.from_config(
            {"delta_type": "ia3", "modified_modules": ["down_proj"], "feedforward_modules": ["down_proj"]}, backbone
        )
    )

    both = logits_of(backbone)
    assert not torch.allclose(one, both, atol=1e-3)
    assert torch.allclose(both, backbone._call_impl(**inputs_for(backbone)).logits, atol=1e-5)


def test_a_run_without_the_graph_has_nothing_compiled_again():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    stir(LoraModel(backbone, lora_r=2, modified_modules=["0"]))  # acts after the layer
    stir(
        AutoDeltaModel.from_config(
            {"delta_type": "ia3", "modified_modules": ["0"], "feedforward_modules": ["0"]}, backbone
        )
    )  # before
    compiled, x = torch.compile(backbone, backend=count, fullgraph=True), torch.ones(2, 4)
    found = compiled(x)
    assert torch.allclose(found, backbone(x))
    assert torch.equal(found, compiled(x))
    assert len(graphs) == 1


class Block(nn.Module):
    """A layer and two activations, which have neither parameters nor children."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.first, self.second = nn.Linear(4, 4), nn.ReLU(), nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape ``(..., 4)``."""
        return self.second(self.first(self.layer(x)))


@pytest.fixture
def counted():
    """Count the graphs that a backend is given."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    backend.graphs = graphs
    return backend


class Doubled(Insertion):
    """An insertion that doubles the output of a module."""

    def after(self, target, args, kwargs, output):
        return 2 * output


def on_activation(backbone: nn.Module, name: str) -> AdapterModel:
    options = {"delta_type": "adapter", "modified_modules": [name]}
    return AdapterModel.from_config(options, backbone, insertions={name: Doubled()})


def test_a_delta_on_an_activation_is_seen_and_has_nothing_else_compiled_again(counted):
    other, x = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend=counted), torch.randn(2, 4)
    backbone = nn.Sequential(Block(), Block())
    compiled = torch.compile(backbone, backend=counted, fullgraph=True)
    other(x)
    bare = compiled(x)
    seen = [bare]

    for name in ("0.first", "1.first", "0.second"):  # each another set of modules
        on_activation(backbone, name)
        seen.append(compiled(x))
        assert torch.allclose(backbone(x), seen[-1], atol=1e-6)
        assert not torch.allclose(seen[-2], seen[-1])
    made = len(counted.graphs)
    other(x)
    assert len(counted.graphs) == made == 5
    for delta in deltas_of(backbone).values():
        delta.remove()
    assert torch.equal(bare, compiled(x))
    assert all(type(module._modules) is dict for module in backbone.modules())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_a_backbone_with_a_delta_on_an_activation_has_its_mark(copied):
    backbone, x = Block(), torch.randn(2, 4)
    on_activation(backbone, "first")
    twin = copied(backbone)

    assert type(twin._modules) is type(backbone._modules)
    assert torch.equal(backbone(x), twin(x))
    for delta in deltas_of(twin).values():
        delta.remove()
    assert type(twin._modules) is dict
    assert type(backbone._modules) is not dict


def test_a_delta_on_an_activation_that_is_compiled_on_its_own_is_seen():
    backbone, x = Block(), torch.randn(2, 4)
    backbone.first = torch.compile(backbone.first, backend="eager")
    with torch.no_grad():
        bare = backbone(x)

        on_activation(backbone, "first")
        assert not torch.allclose(bare, backbone(x))
