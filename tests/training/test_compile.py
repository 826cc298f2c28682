"""torch.compile: one graph through backbone and delta, in training too."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, IA3Model, LoraModel, PrefixModel, SoftPromptModel, deltas_of
from deltahub.engine.insertion import Insertion
from tests.backbones import bert, equal, inputs_for, llama, logits_of, stir, tensors_of, train
from tests.grids import ALL
from tests.training.matrix import HEADED, KINDS, answers, in_order, put_on, train_plainly


def one_block() -> nn.Module:
    """A BERT of one block that knows its problem: it would learn that in the first step, and be compiled again for the second."""
    return bert(num_hidden_layers=1, problem_type="single_label_classification")


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


def on_activation(backbone: nn.Module, name: str = "first") -> AdapterModel:
    options = {"delta_type": "adapter", "modified_modules": [name]}
    return AdapterModel.from_config(options, backbone, insertions={name: Doubled()})


GROUPS = [[kind] for kind in KINDS] if ALL else [KINDS[place::3] for place in range(3)]  # compiling one takes seconds


# The compiler looks at the gradient of every tensor that it meets, of one that a soft prompt has made too; torch warns of that.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kinds", GROUPS, ids="+".join)
def test_a_compiled_backbone_trains_as_it_does_without(kinds, tmp_path):
    plain, backbone, fresh = one_block(), one_block(), one_block()
    for kind in kinds:
        put_on(plain, kind, train=HEADED)
    deltas = [put_on(backbone, kind, train=HEADED) for kind in kinds]
    before = answers(backbone)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)

    expected = train_plainly(plain, 3)
    assert expected == pytest.approx(train_plainly(backbone, 3, call=compiled), abs=1e-5)
    assert len(set(expected)) == 3
    assert not torch.equal(before, answers(backbone))
    for delta in deltas:
        delta.save_finetuned(tmp_path / delta.name)
        loaded = AutoDeltaModel.from_finetuned(tmp_path / delta.name, backbone_model=fresh)
        assert equal(in_order(delta.state_dict()), in_order(loaded.state_dict()))
    assert torch.equal(answers(backbone), answers(fresh))


def wrap_blocks(backbone: nn.Module) -> None:
    """Compile the blocks of a Llama one by one, as is done where compiling the whole takes too long."""
    for number, block in enumerate(backbone.model.layers):
        backbone.model.layers[number] = torch.compile(block, backend="eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize(("first", "blocks"), [("delta", 2), ("compiling", 1)])
def test_a_delta_on_blocks_that_are_compiled_one_by_one_is_like_any(first, blocks, tmp_path):
    plain, backbone, fresh = (llama(num_hidden_layers=blocks) for _ in range(3))
    bare = logits_of(backbone)
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
    loaded = AutoDeltaModel.from_finetuned(tmp_path, fresh)
    assert torch.allclose(trained, logits_of(fresh), atol=1e-5)
    assert {
        "model.layers.0.self_attn.q_proj.deltas.lora_A",
        "model.layers.0.input_layernorm.weight",
    } <= delta.state_dict().keys()
    assert equal(dict(sorted(delta.state_dict().items())), dict(sorted(loaded.state_dict().items())))
    delta.detach()
    assert torch.allclose(bare, logits_of(backbone), atol=1e-5)


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


PROMPTS = {
    "prefix": lambda backbone: PrefixModel(backbone, prefix_token_num=2, embed_dim=3, mid_dim=3),
    "soft_prompt": lambda backbone: SoftPromptModel(backbone, soft_token_num=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", PROMPTS)
def test_a_graph_of_one_backbone_is_not_taken_for_another_that_carries_a_prompt(kind, counted):
    plain, backbone = llama(num_hidden_layers=1), llama(num_hidden_layers=1)
    for model in (plain, backbone):
        model.compile(backend=counted)
    before = logits_of(plain)
    assert torch.equal(before, logits_of(backbone))
    delta = PROMPTS[kind](backbone)
    stir(delta)

    acting = logits_of(backbone)
    assert torch.allclose(acting, backbone._call_impl(**inputs_for(backbone)).logits, atol=1e-5)
    assert acting.shape != before.shape or not torch.allclose(acting, before, atol=1e-3)
    made = len(counted.graphs)
    assert torch.equal(before, logits_of(plain))
    assert len(counted.graphs) == made  # nothing of the plain one was compiled again
    delta.remove()
    assert torch.equal(before, logits_of(backbone))


@pytest.mark.parametrize("put", [lambda backbone: LoraModel(backbone, modified_modules=["layer"]), on_activation])
def test_a_graph_of_one_backbone_is_not_taken_for_another_that_carries_a_delta(put, counted):
    plain, backbone, x = Block(), Block(), torch.randn(2, 4)
    backbone.load_state_dict(plain.state_dict())
    for model in (plain, backbone):
        model.compile(backend=counted)
    before = plain(x)
    assert torch.equal(before, backbone(x))
    delta = put(backbone)
    stir(delta)

    acting = backbone(x)
    assert torch.allclose(acting, backbone._call_impl(x), atol=1e-6)
    assert not torch.allclose(acting, before, atol=1e-3)
    made = len(counted.graphs)
    assert torch.equal(before, plain(x))
    assert len(counted.graphs) == made
    delta.remove()
    assert torch.equal(before, backbone(x))


def test_the_second_hook_at_a_module_is_seen_too():
    backbone, x = Block(), torch.randn(2, 4)
    backbone.compile(backend="eager")
    stir(LoraModel(backbone, modified_modules=["layer"]))
    one = backbone(x)
    stir(IA3Model(backbone, modified_modules=["layer"], feedforward_modules=["layer"]))

    both = backbone(x)
    assert not torch.allclose(one, both, atol=1e-3)
    assert torch.allclose(both, backbone._call_impl(x), atol=1e-6)


def test_a_run_without_the_graph_has_nothing_compiled_again(counted):
    backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    stir(LoraModel(backbone, lora_r=2, modified_modules=["0"]))  # acts after the layer
    stir(IA3Model(backbone, modified_modules=["0"], feedforward_modules=["0"]))  # before
    compiled, x = torch.compile(backbone, backend=counted, fullgraph=True), torch.ones(2, 4)
    found = compiled(x)
    assert torch.allclose(found, backbone(x))
    assert torch.equal(found, compiled(x))
    assert len(counted.graphs) == 1


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
    on_activation(backbone)
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

        on_activation(backbone)
        assert not torch.allclose(bare, backbone(x))
