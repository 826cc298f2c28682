"""Layers that are never called, where a delta would never act."""

import copy
import logging

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from deltahub import AdapterModel, AutoDeltaModel, BitFitModel, IA3Model, LoraModel, WeightUpdateModel
from deltahub.engine.bypassed import is_bypassed
from deltahub.errors import MergeError, TargetError
from deltahub.handle.merging import merged_copy
from tests.backbones import stir


class Reading(nn.Module):
    """Reads the weights of some layers, and calls the others in one way or another."""

    def __init__(self):
        super().__init__()
        self.read, self.forwarded, self.called, self.passed = (nn.Linear(4, 4) for _ in range(4))
        self.reader = through
        self.inside, self.looked_up, self.lent, self.property = (nn.Linear(4, 4) for _ in range(4))

    @property
    def last(self):
        return self.property

    def forward(self, x):
        x = self.called(x.to(self.called.weight.dtype)) + sum(
            layer(x) for layer in [self.inside] if self.inside.weight is not None
        )
        bias = self.read.bias if hasattr(self.read, "bias") else None
        x = self.reader(self.passed, self.forwarded.forward(F.linear(x, self.read.weight, bias)))
        size = self.looked_up.weight.sum() + self.lent.weight.sum() + self.property.weight.sum()
        return self.last(getattr(self, "looked_up")(x)) * size  # noqa: B009


class Around(nn.Module):
    """Calls a layer of another module."""

    def __init__(self):
        super().__init__()
        self.inner = Reading()

    def forward(self, x):
        return self.inner.lent(self.inner(x))


class ByName(nn.Module):
    """Calls its layers by names that its code does not say."""

    def __init__(self):
        super().__init__()
        self.chosen, self.name = nn.Linear(4, 4), "chosen"

    def forward(self, x):
        return getattr(self, self.name)(x) * self.chosen.weight.sum()


class Handing(nn.Module):
    """Hands its layer to a function that calls it."""

    def __init__(self, call):
        super().__init__()
        self.call, self.layer = call, nn.Linear(4, 4)

    def forward(self, x):
        return self.call(self.layer, x)


def through(layer, x):
    """Read the weight of a layer outside of its parent's class."""
    return F.linear(x, layer.weight, layer.bias)


def mamba():
    config = transformers.MambaConfig(vocab_size=8, hidden_size=8, state_size=2, num_hidden_layers=1, expand=1)
    return transformers.MambaForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "name", "model"),
    [
        (Reading, "read", LoraModel),
        (Reading, "forwarded", LoraModel),
        (Reading, "read", AdapterModel),
        (mamba, "backbone.layers.0.mixer.dt_proj", AdapterModel),
    ],
)
def test_a_layer_that_its_parent_only_reads_is_refused_by_name(make, name, model):
    backbone = make()
    with pytest.raises(TargetError, match=rf"{name} is never called") as caught:
        model(backbone, modified_modules=[name])
    assert ("LoraModel" in str(caught.value)) == (make is mamba)  # where a LoRA would act
    assert not any("deltas" in inner for inner, _ in backbone.named_modules())


def test_layers_that_are_only_read_are_left_out_where_the_module_around_them_is_addressed(tmp_path, caplog):
    backbone = Around()
    with caplog.at_level(logging.WARNING, "deltahub"):
        delta = BitFitModel(backbone, modified_modules=["inner"])
    assert set(delta.insertions) == {
        f"inner.{n}" for n in ("called", "passed", "inside", "looked_up", "lent", "property")
    }
    assert "Left out, as they are never called" in caplog.text
    assert "inner.read, inner.forwarded" in caplog.text
    delta.freeze_module()
    delta.save_finetuned(tmp_path)
    caplog.clear()
    loaded = AutoDeltaModel.from_finetuned(tmp_path, copy.deepcopy(backbone), name="loaded")
    assert loaded.insertions.keys() == delta.insertions.keys()
    assert not caplog.text
    with pytest.raises(TargetError, match=r"inner\.read is never called"):
        BitFitModel(Around(), modified_modules=["inner", "inner.read"])


@pytest.mark.parametrize("name", ["called", "passed", "inside", "looked_up", "lent", "property"])
def test_a_layer_that_something_may_call_is_taken(name):
    around = Around()
    assert not is_bypassed(around, f"inner.{name}")
    assert LoraModel(around, modified_modules=[f"inner.{name}"]).insertions


def test_a_layer_that_is_called_by_a_name_in_a_variable_is_taken():
    assert not is_bypassed(ByName(), "chosen")


@pytest.fixture(params=["both", "alone", "compiled"])
def trained(request):
    """A delta on a layer that the backbone never calls, and mostly on one that it does, after the backbone ran."""
    backbone = Reading()
    delta = LoraModel(
        backbone, lora_r=2, modified_modules=["passed"] if request.param == "alone" else ["called", "passed"]
    )
    if request.param == "compiled":
        backbone.compile(backend="eager")
    backbone(torch.ones(1, 4))
    return delta


def test_saving_names_the_modules_on_which_the_delta_never_acted(trained, tmp_path, caplog):
    trained.freeze_module()
    with caplog.at_level(logging.WARNING, "deltahub"):
        trained.save_finetuned(tmp_path / "delta")
    assert "never acted on passed" in caplog.text


def test_a_merge_is_refused_where_the_delta_never_acted_and_would_begin_to(trained):
    stir(trained)
    weight = trained.backbone_model.called.weight.detach().clone()
    with pytest.raises(MergeError, match="never acted on passed"):
        merged_copy(trained.backbone_model)
    with pytest.raises(MergeError, match="never acted on passed"):
        trained.merge()
    assert torch.equal(trained.backbone_model.called.weight, weight)


def test_a_merge_that_leaves_the_uncalled_layer_as_it_is_goes_through(trained):
    trained.merge()
    assert trained.merged


def test_a_merge_from_before_the_first_run_is_done_again_when_another_is_taken_out():
    backbone = Reading()
    first, second = (LoraModel(backbone, lora_r=2, modified_modules=["called", "passed"], name=name) for name in "ab")
    for delta in (first, second):
        stir(delta)
        delta.merge()
    backbone(torch.ones(1, 4))
    second.unmerge()
    assert first.merged


# The compiler looks at the gradient of every tensor that it meets.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_layer_that_ran_in_the_graph_of_another_model_counts_as_called():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    call = torch.compile(lambda layer, x: layer(x), backend=count)
    for _ in range(2):
        backbone = Handing(call)
        delta = LoraModel(backbone, lora_r=2, modified_modules=["layer"])
        stir(delta)
        backbone(torch.ones(1, 4))
        delta.merge()
        assert delta.merged
    assert len(graphs) == 1


def test_a_delta_that_has_not_run_yet_is_merged():
    delta = LoraModel(Reading(), lora_r=2, modified_modules=["called", "passed"])
    stir(delta)
    delta.merge()
    assert delta.merged


def test_an_expert_without_tokens_is_merged_with_the_others():
    backbone = nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(4, 4) for _ in range(2))})
    delta = LoraModel(backbone, lora_r=2, modified_modules=["experts.0", "experts.1"])
    stir(delta)
    backbone["experts"][0](torch.ones(1, 4))
    delta.merge()
    assert delta.merged


class Attention(nn.Module):
    """An attention of PyTorch's and a convolution."""

    def __init__(self):
        super().__init__()
        self.attn, self.conv = nn.MultiheadAttention(4, 1), nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(self.attn(x, x, x)[0].mT)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((IA3Model, name) for name in ("attn", "conv", "attn.out_proj")),
        *((WeightUpdateModel, name) for name in ("attn", "attn.out_proj")),
    ],
)
def test_refused_attentions_and_convolutions_suggest_no_address(model, name):
    with pytest.raises(TargetError) as refused:
        model(Attention(), modified_modules=[name])
    assert "Address" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "name"), [(AdapterModel, "attn"), (BitFitModel, "conv"), (LoraModel, "conv"), (LoraModel, "attn")]
)
def test_the_remedy_that_the_message_names_works(model, name):
    backbone, x = Attention(), torch.ones(2, 1, 4)
    plain = backbone(x)
    delta = model(backbone, modified_modules=[name])
    with torch.no_grad():
        for parameter in delta.parameters():
            parameter.fill_(0.3)
    assert not torch.equal(backbone(x), plain)


@pytest.mark.usefixtures("nothing_compiled")
def test_a_backbone_that_runs_the_graph_of_another_is_known_to_have_run():
    for _ in range(2):
        backbone = Reading()
        delta = LoraModel(backbone, lora_r=2, modified_modules=["called", "passed"])
        backbone.compile(backend="eager")
        backbone(torch.ones(1, 4))
        stir(delta)
        with pytest.raises(MergeError, match="has never acted on passed"):
            delta.merge()


def test_a_run_of_a_part_is_not_taken_for_one_of_the_whole():
    backbone = Around()
    backbone.other = nn.Linear(4, 4)
    whole = LoraModel(backbone, lora_r=2, modified_modules=["other"])
    part = LoraModel(backbone.inner, lora_r=2, modified_modules=["called"])
    assert whole.name == part.name
    stir(whole)
    backbone.inner(torch.ones(1, 4))
    whole.merge()


def handed(layer, x):
    """Hand a layer on to a function that reads its weight."""
    return through(layer=layer, x=x)


class ReadingOtherwise(nn.Module):
    """Reads the weights of its layers in ways that do not name them where they are read."""

    def __init__(self):
        super().__init__()
        self.alias, self.handed, self.method, self.chosen, self.first = (nn.Linear(4, 4) for _ in range(5))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.held = nn.ModuleDict({"inner": nn.Linear(4, 4)})

    def product(self, layer, x):
        return x @ layer.weight

    def forward(self, x):
        layer, first = self.alias, self.first
        x = F.linear(handed(self.handed, F.linear(x, layer.weight)), first.weight)
        x = self.product(self.method, x) @ getattr(self.chosen, "weight")  # noqa: B009
        for number, layer in enumerate(self.layers):
            x = F.linear(x, layer.weight) * number
        return F.linear(x, self.held["inner"].weight)


@pytest.mark.parametrize("name", ["alias", "first", "handed", "method", "chosen", "layers.0", "layers.1", "held.inner"])
def test_a_layer_that_is_read_by_another_name_is_refused(name):
    with pytest.raises(TargetError, match="is never called"):
        LoraModel(ReadingOtherwise(), modified_modules=[name])


class CallingOtherwise(nn.Module):
    """Calls its layers in the same ways, and reads some of their weights too."""

    def __init__(self):
        super().__init__()
        self.alias, self.handed, self.branch = (nn.Linear(4, 4) for _ in range(3))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.chain = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        layer = self.alias
        x = run(self.handed, layer(x) * layer.weight.sum())
        x = F.linear(x, self.branch.weight) if x.sum() < 0 else self.branch(x)
        for _, layer in enumerate(self.layers):
            x = layer(x)
        return self.chain(x)


def run(layer, x):
    """Call a layer."""
    return layer(x)


@pytest.mark.parametrize("name", ["alias", "handed", "branch", "layers.1", "chain.0"])
def test_a_layer_that_is_called_by_another_name_is_taken(name):
    assert not is_bypassed(CallingOtherwise(), name)


class Borrowing(nn.Module):
    """Reads the weights of layers that another module holds, one of which that module calls."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.proj = nn.Linear(4, 4)
        self.words = nn.Embedding(4, 4)

    def forward(self, ids):
        return F.linear(F.linear(self.words(ids), self.inner.proj.weight), self.words.weight)


def test_a_layer_that_only_another_module_reads_is_refused():
    with pytest.raises(TargetError, match=r"inner\.proj is never called"):
        LoraModel(Borrowing(), modified_modules=["proj"])


def test_an_embedding_that_is_the_head_too_is_not_merged():
    backbone = Borrowing()
    delta = LoraModel(backbone, lora_r=2, modified_modules=["words"])
    stir(delta)
    weight = backbone.words.weight.detach().clone()
    with pytest.raises(MergeError, match="multiplies by its weight elsewhere"):
        delta.merge()
    assert torch.equal(backbone.words.weight, weight)


def test_training_tells_at_its_second_step_which_layers_are_not_called(caplog):
    backbone = Reading()
    LoraModel(backbone, lora_r=2, modified_modules=["called", "passed"])
    with caplog.at_level(logging.WARNING, "deltahub"):
        backbone(torch.ones(1, 4))
        assert not caplog.text
        for _ in range(2):
            backbone(torch.ones(1, 4))
    assert caplog.text.count("never acted on passed") == 1
