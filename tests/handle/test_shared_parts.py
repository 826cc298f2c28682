"""Deltas on a model and on a part of it: both handles see one state, in whatever order deltas come and go."""

import copy
import pickle

import pytest
import torch

from deltahub import AutoDeltaModel, BitFitModel, LoraModel, deltas_of, merged_copy, route
from deltahub.errors import ConfigError, MergeError, RouteError, TargetError
from tests.backbones import bert, equal, logits_of, stir, tensors_of, train

BIAS = "bert.pooler.dense.bias"


def on_part(backbone, name=None):
    delta = LoraModel(backbone.bert, modified_modules=["query"], name=name)
    delta.freeze_module(set_state_dict=False)
    stir(delta, 3)
    return delta


def on_whole(backbone, name=None):
    delta = LoraModel(backbone, modified_modules=["query", "classifier"], exclude_modules=[], name=name)
    delta.freeze_module(set_state_dict=False)
    stir(delta, 4)
    return delta


ORDERS = pytest.mark.parametrize(
    "makers", [(on_part, on_whole), (on_whole, on_part)], ids=["part first", "whole first"]
)
REMAKE = pytest.mark.parametrize(
    "remake",
    [lambda model: model, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["model", "copy", "pickle"],
)


@ORDERS
@REMAKE
@pytest.mark.parametrize("first", [0, 1])
def test_both_act_are_seen_and_come_off_in_any_order(makers, remake, first):
    backbone = bert()
    tensors, plain, flags = tensors_of(backbone), logits_of(backbone), [p.requires_grad for p in backbone.parameters()]
    deltas = [make(backbone) for make in makers]
    assert [delta.name for delta in deltas] == ["lora", "lora_1"]
    alone = []
    for _, other in (deltas, deltas[::-1]):
        other.detach()
        alone.append(logits_of(backbone))
        other.attach()
    both = logits_of(backbone)

    backbone = remake(backbone)
    handles = deltas_of(backbone)
    assert list(handles) == ["lora", "lora_1"]
    assert torch.equal(both, logits_of(backbone))
    shown = {id(parameter) for parameter in backbone.parameters()}
    assert all(id(parameter) in shown for delta in handles.values() for parameter in delta.parameters())
    chosen = list(handles.values())
    chosen[first].remove()
    assert torch.equal(alone[1 - first], logits_of(backbone))
    chosen[1 - first].remove()
    assert torch.equal(plain, logits_of(backbone))
    assert equal(tensors, tensors_of(backbone))
    assert flags == [parameter.requires_grad for parameter in backbone.parameters()]
    assert not [key for module in backbone.modules() for key in module.__dict__ if key.startswith("_deltahub")]


@ORDERS
def test_a_name_is_taken_on_the_part_and_on_the_whole(makers):
    backbone = bert()
    makers[0](backbone, "same")

    with pytest.raises(ConfigError, match="'same' is on this backbone already"):
        makers[1](backbone, "same")


def test_deltas_with_one_name_on_separate_parts_are_distinguished_by_part():
    backbone = bert()
    LoraModel(backbone, modified_modules=["classifier"], exclude_modules=[])
    on_part(backbone)

    assert {key: delta.name for key, delta in deltas_of(backbone).items()} == {"lora": "lora", "bert.lora": "lora"}


def test_a_part_put_in_later_with_a_delta_of_the_same_name_keeps_it_apart():
    whole, part = bert(), bert().bert
    outer = LoraModel(whole, modified_modules=["classifier"], exclude_modules=[])
    inner = LoraModel(part, modified_modules=["query"])
    stir(outer, 1), stir(inner, 2)
    whole.bert = part
    expected = logits_of(whole)

    outer.freeze_module(exclude=["deltas", "bert"])
    assert (trained(outer), trained(inner)) == ({True}, {False})
    outer.freeze_module(exclude=["deltas"])
    assert deltas_of(whole).keys() == {"lora", "bert.lora"}
    assert not any("query" in name for name in outer.state_dict())
    plain = merged_copy(whole)
    assert plain.state_dict().keys() == bert().state_dict().keys()
    assert torch.allclose(expected, logits_of(plain), atol=1e-5)
    inner.remove()
    assert trained(outer) == {True}
    assert not [name for name, _ in whole.bert.named_parameters() if "deltas" in name]


def trained(delta):
    return {parameter.requires_grad for parameter in delta.parameters()}


@ORDERS
def test_a_merged_copy_holds_all_of_them_and_no_trace(makers):
    backbone = bert()
    deltas = [make(backbone) for make in makers]
    expected = logits_of(backbone)
    deltas[0].detach(backbone.bert.encoder.layer[0] if makers[0] is on_whole else None)
    without = logits_of(backbone)
    part = merged_copy(backbone)
    deltas[0].attach()
    plain = merged_copy(backbone)

    assert list(plain.state_dict()) == list(bert().state_dict())
    assert not [key for module in plain.modules() for key in module.__dict__ if key.startswith("_deltahub")]
    assert torch.allclose(expected, logits_of(plain), atol=1e-5)
    assert torch.allclose(without, logits_of(part), atol=1e-5)
    inner = merged_copy(backbone.bert)
    assert equal(tensors_of(plain.bert), tensors_of(inner))


@ORDERS
def test_a_tensor_that_both_train_has_the_value_of_the_last_and_then_its_own(makers, tmp_path):
    backbone = bert()
    base = backbone.get_parameter(BIAS).detach().clone()
    deltas, values = [], []
    for make in makers:
        delta = make(backbone)
        delta.freeze_module(exclude=["deltas", "pooler.dense.bias"])
        train(backbone)
        deltas.append(delta)
        values.append(backbone.get_parameter(BIAS).detach().clone())
    assert not torch.equal(*values)

    deltas[0].save_finetuned(tmp_path)
    fresh = bert()
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh.bert if makers[0] is on_part else fresh)
    assert torch.equal(values[0], fresh.get_parameter(BIAS))
    deltas[1].detach()
    assert torch.equal(values[0], backbone.get_parameter(BIAS))
    deltas[0].detach()
    assert torch.equal(base, backbone.get_parameter(BIAS))
    deltas[1].attach()
    assert torch.equal(values[1], backbone.get_parameter(BIAS))


@ORDERS
def test_a_delta_is_saved_for_the_backbones_own_values_while_the_other_is_merged(makers, tmp_path):
    backbone = bert()
    one, other = (make(backbone) for make in makers)
    other.detach()
    one.merge()
    with pytest.raises(MergeError, match=f"{one.name!r} is merged"):
        other.attach()
    with pytest.raises(MergeError, match="is merged into the backbone's weights"):
        makers[1](backbone)
    other.save_finetuned(tmp_path)
    one.unmerge()

    fresh = bert()
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh if makers[1] is on_whole else fresh.bert)


@ORDERS
def test_a_route_does_not_let_deltas_of_the_other_handle_act(makers):
    backbone = bert()
    made = {make: make(backbone) for make in makers}

    for model, delta in ((backbone, made[on_whole]), (backbone.bert, made[on_part])):
        routed = route(model, [delta, None])
        with pytest.raises(RouteError, match=r"'lora.*' acts at .* and was put on a part"):
            routed.__enter__()
    made[on_part].detach()
    with route(backbone, [made[on_whole], None]):
        logits_of(backbone)


def test_a_head_that_is_changed_while_its_delta_is_off_is_the_backbones_own(tmp_path):
    backbone = bert()
    delta = LoraModel(backbone, name="a")
    delta.freeze_module(exclude=["deltas", "classifier"])
    train(backbone)
    head = backbone.classifier.weight.detach().clone()
    delta.detach()
    with torch.no_grad():
        backbone.classifier.weight.add_(1)
    changed = backbone.classifier.weight.detach().clone()
    other = bert()
    other.classifier.load_state_dict(backbone.classifier.state_dict())

    delta.attach()
    assert torch.equal(head, backbone.classifier.weight)
    bias = BitFitModel(backbone, modified_modules=["query"], name="b")
    bias.freeze_module()
    bias.save_finetuned(tmp_path)
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=other)
    delta.detach()
    assert torch.equal(changed, backbone.classifier.weight)


def test_a_head_module_that_is_exchanged_is_refused_before_anything_changes():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])
    train(backbone)
    delta.detach()
    backbone.classifier = torch.nn.Linear(16, 3)
    before = logits_of(backbone)

    with pytest.raises(TargetError, match=r"classifier.* was replaced after the delta 'lora' began to train it"):
        delta.attach()
    assert torch.equal(before, logits_of(backbone))


def test_freezing_again_keeps_a_deltas_own_head_while_another_ones_acts():
    backbone = bert()
    heads = []
    for name in ("a", "b"):
        delta = LoraModel(backbone, name=name)
        delta.freeze_module(exclude=["deltas", "classifier"])
        train(backbone)
        heads.append(backbone.classifier.weight.detach().clone())
    deltas_of(backbone)["a"].freeze_module(exclude=["deltas", "classifier"])
    deltas_of(backbone)["b"].detach()

    assert torch.equal(heads[0], backbone.classifier.weight)
