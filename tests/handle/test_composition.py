"""Many deltas on one backbone: in which order they act, and what one notices of the others' coming and going."""

import itertools
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from deltahub import BitFitModel, LoraModel, deltas_of
from deltahub.engine.insertion import Insertion, first_input
from deltahub.testing.backbones import Template
from tests.backbones import bert, equal, logits_of, stir, tensors_of
from tests.engine.crowds import TYPES, crowd

# ----- the order of the tensor's way -----


class Step(Insertion):
    """Multiplies and adds, to what a module is called with or to what it returns."""

    def __init__(self, factor, offset):
        super().__init__()
        self.factor, self.offset = nn.Parameter(torch.tensor(float(factor))), offset

    def change(self, x):
        return x * self.factor + self.offset


class Early(Step):
    def before(self, target, args, kwargs):
        return (self.change(first_input(args, kwargs)), *args[1:]), kwargs


class Late(Step):
    def after(self, target, args, kwargs, output):
        return self.change(output)


STEPS = {"a": (2.0, 1.0), "b": (3.0, -1.0), "c": (0.5, 4.0)}


def stepped(backbone, address, kind):
    """Three deltas at one module."""
    for name, numbers in STEPS.items():
        LoraModel.from_config({"delta_type": "lora"}, backbone, name=name, insertions={address: kind(*numbers)})
    return deltas_of(backbone)


@pytest.mark.parametrize(
    "on", [names for size in range(4) for names in itertools.combinations("abc", size)], ids="".join
)
@pytest.mark.parametrize("kind", [Early, Late])
def test_the_way_of_a_tensor_follows_the_order_in_which_deltas_were_added(kind, on):
    backbone, layer = nn.ModuleDict({"layer": nn.Linear(3, 3)}), nn.Linear(3, 3)
    layer.load_state_dict(backbone["layer"].state_dict())
    deltas = stepped(backbone, "layer", kind)
    for name in ("b", "a", "c"):
        deltas[name].detach()
    for name in reversed(on):  # back in another order than they came
        deltas[name].attach()
    x = torch.randn(2, 3)

    expected = x
    if kind is Early:
        for name in reversed(on):  # what came last is outermost, so it sees the tensor first
            expected = expected * STEPS[name][0] + STEPS[name][1]
    expected = layer(expected)
    if kind is Late:
        for name in on:
            expected = expected * STEPS[name][0] + STEPS[name][1]
    assert torch.equal(expected, backbone["layer"](x))


@pytest.fixture(scope="module")
def crowded():
    """Makes a backbone with a delta of each type, all on."""
    backbone = bert()
    crowd(backbone)
    return Template(backbone)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(TYPES), st.booleans()), max_size=12))
def test_after_any_switching_those_that_are_on_act_as_if_the_others_had_never_been(crowded, switches):
    backbone = crowded()
    on = set(TYPES)
    for name, attach in switches:
        delta = deltas_of(backbone)[name]
        delta.attach() if attach else delta.detach()
        on = on | {name} if attach else on - {name}
    alone = crowded()
    for name in set(TYPES) - on:
        deltas_of(alone)[name].remove()

    assert torch.equal(logits_of(alone), logits_of(backbone))
    assert [name for name, delta in deltas_of(backbone).items() if delta.attached] == [t for t in TYPES if t in on]


def test_many_deltas_on_one_layer_come_off_in_any_order():
    backbone = bert()
    expected, tensors = logits_of(backbone), tensors_of(backbone)
    for number in range(30):
        stir(BitFitModel(backbone, modified_modules=["attn.q"], name=f"d{number}"), number)
    assert list(deltas_of(backbone)) == [f"d{number}" for number in range(30)]

    for number in torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist():
        assert not torch.equal(expected, logits_of(backbone))
        deltas_of(backbone)[f"d{number}"].detach()
    assert torch.equal(expected, logits_of(backbone))
    assert equal(tensors, tensors_of(backbone))


def calls_of(action):
    """How many Python functions an action calls."""
    count = 0

    def see(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def test_switching_takes_no_more_steps_where_many_are_loaded():
    counts = []
    for number in (2, 42):
        backbone = bert()
        for index in range(number):
            LoraModel(backbone, name=f"d{index}").detach()
        first, last = (deltas_of(backbone)[name] for name in ("d0", f"d{number - 1}"))
        first.attach()
        counts.append(calls_of(lambda first=first, last=last: (first.detach(), last.attach())))

    assert counts[0] <= counts[1] <= counts[0] + 2 * 40  # a glance at each entry, none at its parts
