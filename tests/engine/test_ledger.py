import copy
import itertools
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahub import AutoDeltaModel, LoraModel, deltas_of
from tests.backbones import bert, equal, logits_of, tensors_of, train

NAMES = ("a", "b", "c")
ORDERS = list(itertools.permutations(NAMES))
HEAD = "classifier.weight"


def trained(backbone, name, steps=1):
    """A delta with a classifier head of its own, trained while it alone was on."""
    delta = LoraModel(backbone, modified_modules=["query"], name=name)
    delta.freeze_module(exclude=["deltas", "classifier"])
    train(backbone, steps)
    return delta


@pytest.fixture(scope="module")
def prepared():
    """A backbone with three such deltas, all off; what it was, and what it gives with each of them alone."""
    backbone = bert()
    expected = {"none": logits_of(backbone)}
    tensors = tensors_of(backbone)
    for steps, name in enumerate(NAMES, 1):
        delta = trained(backbone, name, steps)
        expected[name] = logits_of(backbone)
        delta.detach()
    return backbone, tensors, expected


def copy_of(prepared):
    backbone, tensors, expected = prepared
    return copy.deepcopy(backbone), tensors, expected


def test_each_delta_has_a_head_of_its_own(prepared):
    backbone, tensors, expected = copy_of(prepared)
    assert equal(tensors, tensors_of(backbone))

    heads = []
    for name in (*NAMES, *reversed(NAMES)):
        delta = deltas_of(backbone)[name]
        delta.attach()
        assert torch.equal(expected[name], logits_of(backbone))
        heads.append(backbone.classifier.weight.detach().clone())
        delta.detach()
        assert equal(tensors, tensors_of(backbone))
        assert torch.equal(expected["none"], logits_of(backbone))
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[-1])


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_detaching_in_any_order_gives_back_the_backbones_own_head(prepared, order):
    backbone, tensors, expected = copy_of(prepared)
    for delta in deltas_of(backbone).values():
        delta.attach()

    for name in order:
        deltas_of(backbone)[name].detach()

    assert equal(tensors, tensors_of(backbone))
    assert torch.equal(expected["none"], logits_of(backbone))


@pytest.mark.parametrize("order", ORDERS, ids="".join)
def test_the_head_in_force_is_that_of_the_last_delta_added(prepared, order):
    backbone, _, _ = copy_of(prepared)
    heads = {name: delta.state_dict()[HEAD].clone() for name, delta in deltas_of(backbone).items()}
    on = set()

    for name in order:
        deltas_of(backbone)[name].attach()
        on.add(name)
        assert torch.equal(heads[max(on)], backbone.classifier.weight)
    assert all(torch.equal(heads[name], delta.state_dict()[HEAD]) for name, delta in deltas_of(backbone).items())


@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=8))
def test_no_sequence_of_switching_loses_a_head(prepared, switches):
    backbone, tensors, _ = copy_of(prepared)
    heads = {name: delta.state_dict()[HEAD].clone() for name, delta in deltas_of(backbone).items()}
    on = set()

    for name, attach in switches:
        delta = deltas_of(backbone)[name]
        delta.attach() if attach else delta.detach()
        on = on | {name} if attach else on - {name}
        assert torch.equal(heads[max(on)] if on else tensors[HEAD], backbone.classifier.weight)
        for other, handle in deltas_of(backbone).items():
            assert torch.equal(heads[other], handle.state_dict()[HEAD])


def test_training_after_coming_back_goes_on_from_the_deltas_own_head(prepared):
    backbone, tensors, _ = copy_of(prepared)
    delta = deltas_of(backbone)["b"]
    before = delta.state_dict()[HEAD].clone()
    delta.attach()
    train(backbone)
    after = delta.state_dict()[HEAD].clone()
    delta.detach()

    assert not torch.equal(before, after)
    assert torch.equal(after, delta.state_dict()[HEAD])
    assert torch.equal(tensors[HEAD], backbone.classifier.weight)


@pytest.mark.parametrize(
    "remake", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_has_heads_of_its_own(prepared, remake):
    backbone, tensors, expected = copy_of(prepared)
    twin = remake(backbone)
    deltas_of(twin)["a"].attach()
    train(twin)
    deltas_of(twin)["a"].detach()
    deltas_of(backbone)["a"].attach()

    assert torch.equal(expected["a"], logits_of(backbone))
    assert torch.equal(tensors[HEAD], twin.classifier.weight)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_two_checkpoints_with_heads_live_on_one_backbone(tmp_path, prepared, order):
    source, tensors, expected = copy_of(prepared)
    for name in order:
        delta = deltas_of(source)[name]
        delta.attach()
        delta.save_finetuned(tmp_path / name)
        delta.detach()

    fresh = bert()
    for name in order:
        AutoDeltaModel.from_finetuned(tmp_path / name, backbone_model=fresh, name=name).detach()
    for name in order:
        deltas_of(fresh)[name].attach()
        assert torch.equal(expected[name], logits_of(fresh))
        deltas_of(fresh)[name].detach()
    assert equal(tensors, tensors_of(fresh))


def test_saving_one_delta_while_another_holds_the_head_saves_its_own(tmp_path, prepared):
    backbone, _, expected = copy_of(prepared)
    for name in ("a", "b"):
        deltas_of(backbone)[name].attach()
    deltas_of(backbone)["a"].save_finetuned(tmp_path)

    fresh = bert()
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=fresh)
    assert torch.equal(expected["a"], logits_of(fresh))


def test_loading_tensors_into_a_delta_that_is_off_changes_only_its_own_head(prepared):
    backbone, tensors, expected = copy_of(prepared)
    a, b = (deltas_of(backbone)[name] for name in ("a", "b"))
    b.load_state_dict(a.state_dict())
    assert torch.equal(tensors[HEAD], backbone.classifier.weight)

    b.attach()
    assert torch.equal(expected["a"], logits_of(backbone))
    train(backbone)
    b.detach()
    a.attach()
    assert torch.equal(expected["a"], logits_of(backbone))  # b shares no memory with a


def test_loading_live_tensors_of_another_delta_copies_them(prepared):
    backbone, _, _ = copy_of(prepared)
    a, b = (deltas_of(backbone)[name] for name in ("a", "b"))
    b.attach()
    a.load_state_dict(b.state_dict())
    expected = b.state_dict()[HEAD].clone()
    b.freeze_module(exclude=["classifier"])
    train(backbone)

    assert torch.equal(expected, a.state_dict()[HEAD])
    assert not torch.equal(expected, b.state_dict()[HEAD])


def test_a_head_that_was_never_trained_is_given_back():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])
    delta.freeze_module(exclude=["deltas"])

    assert HEAD not in delta.state_dict()


def test_a_head_that_was_trained_stays_the_deltas_when_it_is_frozen_later():
    backbone = bert()
    delta = trained(backbone, "a")
    delta.freeze_module(exclude=["deltas"])

    assert torch.equal(backbone.classifier.weight, delta.state_dict()[HEAD])


def test_a_head_unfrozen_by_hand_after_all_is_saved_too():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])
    delta.freeze_module(exclude=["deltas"])
    backbone.classifier.weight.requires_grad_()

    assert HEAD in delta.state_dict()
