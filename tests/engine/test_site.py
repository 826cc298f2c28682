import copy
import pickle
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

from deltahub.engine.insertion import Insertion, map_hidden
from deltahub.engine.site import check_target, insert, is_delta_name, site_of
from deltahub.errors import TargetError


class Times(Insertion):
    """Multiplies what a module returns."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(float(factor)))

    def after(self, target, args, kwargs, output):
        return map_hidden(output, lambda hidden: hidden * self.factor)


class Plus(Times):
    """Adds to what a module returns."""

    def after(self, target, args, kwargs, output):
        return map_hidden(output, lambda hidden: hidden + self.factor)


class TimesBefore(Times):
    """Multiplies what a module is called with."""

    after = Insertion.after

    def before(self, target, args, kwargs):
        return (args[0] * self.factor, *args[1:]), kwargs


class PlusBefore(TimesBefore):
    """Adds to what a module is called with."""

    def before(self, target, args, kwargs):
        return (args[0] + self.factor, *args[1:]), kwargs


class Pair(nn.Module):
    """Returns its input and something else."""

    def forward(self, x, kind=tuple):
        return (x, "rest") if kind is tuple else kind({"first": x, "second": "rest"})


ONE = torch.ones(1)


def test_after_runs_in_the_order_of_insertion():
    target = nn.Identity()
    insert(target, "a", Times(10))
    insert(target, "b", Plus(1))

    assert target(ONE).item() == 11  # (1 * 10) + 1


def test_before_runs_last_added_first():
    target = nn.Identity()
    insert(target, "a", TimesBefore(10))
    insert(target, "b", PlusBefore(1))

    assert target(ONE).item() == 20  # (1 + 1) * 10


def test_an_insertion_turned_on_again_keeps_its_slot():
    target = nn.Identity()
    for name, insertion in {"z": Times(10), "y": Plus(1), "x": TimesBefore(2), "w": PlusBefore(3)}.items():
        insert(target, name, insertion)
    expected = target(ONE)

    for name in ("z", "x"):
        site_of(target).turn(name, on=False)
    for name in ("x", "z"):
        site_of(target).turn(name, on=True)

    assert expected.item() == 81  # ((1 + 3) * 2) * 10 + 1
    assert torch.equal(expected, target(ONE))


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_turning_all_off_in_any_order_gives_the_bare_target(order):
    target = nn.Linear(2, 2)
    x = torch.randn(3, 2)
    expected, names = target(x), list(target.state_dict())
    insert(target, "a", Times(10))
    insert(target, "b", PlusBefore(1))

    for name in order:
        assert not torch.equal(expected, target(x))
        site_of(target).turn(name, on=False)

    assert torch.equal(expected, target(x))
    assert names == list(target.state_dict())
    assert names == [name for name, _ in target.named_parameters()]


def test_turning_on_twice_acts_once():
    target = nn.Identity()
    insert(target, "a", Times(10))
    site_of(target).turn("a", on=True)

    assert target(ONE).item() == 10


def test_a_target_keeps_its_own_names():
    target = nn.Linear(2, 2)
    insert(target, "a", Times(10))

    assert [name for name in target.state_dict() if not is_delta_name(name)] == ["weight", "bias"]


def test_a_tuple_keeps_its_other_elements():
    target = Pair()
    insert(target, "a", Times(10))

    hidden, rest = target(ONE)
    assert (hidden.item(), rest) == (10, "rest")


def test_a_model_output_keeps_its_class_and_other_fields():
    target = Pair()
    insert(target, "a", Times(10))

    output = target(ONE, kind=OrderedDict)
    assert isinstance(output, OrderedDict)
    assert (output["first"].item(), output["second"]) == (10, "rest")


def test_an_output_without_a_hidden_state_is_refused():
    with pytest.raises(TargetError, match=r"returns a int; expected a tensor, a tuple or a ModelOutput"):
        map_hidden(3, lambda hidden: hidden)


def test_inputs_by_name_reach_the_target():
    target = Pair()
    insert(target, "a", Times(10))

    assert target(x=ONE)[0].item() == 10


def test_a_copy_has_insertions_of_its_own():
    target = nn.Sequential(nn.Identity())
    insert(target[0], "a", Times(10))
    insert(target[0], "off", Plus(1))
    site_of(target[0]).turn("off", on=False)
    twin = copy.deepcopy(target)

    with torch.no_grad():
        site_of(twin[0]).slots["a"].factor.fill_(7)
        site_of(twin[0]).slots["off"].factor.fill_(2)
    site_of(twin[0]).turn("off", on=True)

    assert (target(ONE).item(), twin(ONE).item()) == (10, 9)


def test_a_pickled_target_acts_the_same():
    target = nn.Identity()
    insert(target, "a", Times(10))
    insert(target, "b", PlusBefore(1))

    assert torch.equal(target(ONE), pickle.loads(pickle.dumps(target))(ONE))


def test_an_insertion_takes_the_mode_of_its_target():
    target = nn.Linear(2, 2).eval()
    insert(target, "a", Times(10))
    assert not site_of(target).slots["a"].training

    target.train()
    assert site_of(target).slots["a"].training


@pytest.mark.parametrize(
    ("container", "hint"),
    [
        (nn.Sequential(nn.Linear(1, 1)), "block.0"),
        (nn.ModuleList([nn.Linear(1, 1)]), "block.0"),
        (nn.ModuleDict({"q": nn.Linear(1, 1)}), "block.q"),
        (nn.ModuleList(), "a module inside it"),
    ],
)
def test_a_container_is_refused_and_a_child_is_named(container, hint):
    with pytest.raises(TargetError) as caught:
        check_target("block", container)

    assert type(container).__name__ in str(caught.value)
    assert f"Address {hint} instead" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deltas", True),
        ("layer.deltas", True),
        ("layer.deltas.lora.lora_A", True),
        ("deltas.lora.lora_A", True),
        ("layer.my_deltas.weight", False),
        ("layer.deltas2", False),
        ("", False),
    ],
)
def test_names_of_deltas_are_distinguished_from_those_of_the_backbone(name, expected):
    assert expected == is_delta_name(name)


def test_a_named_tuple_stays_one():
    Pair = namedtuple("Pair", ["hidden", "cell"])  # noqa: PYI024  (what modules of others return)

    changed = map_hidden(Pair(torch.tensor(1), 3), lambda hidden: hidden + 1)

    assert changed == Pair(torch.tensor(2), 3)
    assert changed.cell == 3


@pytest.mark.parametrize("output", [(), (None, torch.ones(1)), {}, {"hidden": None}])
def test_an_output_that_does_not_begin_with_a_tensor_is_refused(output):
    with pytest.raises(TargetError, match="that begins with one"):
        map_hidden(output, lambda hidden: hidden)
