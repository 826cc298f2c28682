"""A batch in parts: what each insertion is given, and what becomes of what it gives back."""

from collections import namedtuple

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from deltahub.engine.insertion import Insertion, first_input, map_hidden
from deltahub.engine.routing.rows import Split
from deltahub.errors import RouteError

CPU = torch.device("cpu")
BATCH = torch.arange(12.0).view(4, 3)


class Plus(Insertion):
    """Adds a number on the way in and on the way out, and keeps what it was given."""

    def __init__(self, number):
        super().__init__()
        self.number, self.given = number, None

    def before(self, target, args, kwargs):
        self.given = args, kwargs
        return (first_input(args, kwargs) + self.number, *args[1:]), kwargs

    def after(self, target, args, kwargs, output):
        self.given = args, kwargs
        return map_hidden(output, lambda hidden: hidden + self.number)


def plus(*numbers):
    """What is added to rows."""
    return BATCH + torch.tensor(numbers).float().view(-1, 1)


@pytest.fixture
def split():
    """Rows 0 and 2 through one insertion, row 3 through another, row 1 through none."""
    a, b = Plus(10), Plus(20)
    return Split.of([a, None, a, b], CPU), a, b


def test_each_row_is_changed_by_its_own_delta(split):
    assert torch.equal(plus(10, 0, 10, 20), split[0].after(None, (BATCH,), {}, BATCH))
    (changed,), _ = split[0].before(None, (BATCH,), {})
    assert torch.equal(plus(10, 0, 10, 20), changed)


Pair = namedtuple("Pair", ["hidden", "rest"])  # noqa: PYI024  (what modules of others return)


@pytest.mark.parametrize("output", [(BATCH, "rest"), Pair(BATCH, "rest")], ids=["tuple", "named"])
def test_other_return_values_pass_through(split, output):
    changed = split[0].after(None, (BATCH,), {}, output)

    assert type(output) is type(changed)
    assert torch.equal(plus(10, 0, 10, 20), changed[0])
    assert changed[1] == "rest"


def test_a_model_output_keeps_its_class_and_fields(split):
    others = (torch.ones(4, 1),)
    changed = split[0].after(None, (BATCH,), {}, BaseModelOutput(BATCH, hidden_states=others))

    assert isinstance(changed, BaseModelOutput)
    assert torch.equal(plus(10, 0, 10, 20), changed.last_hidden_state)
    assert changed.hidden_states is others


def test_an_insertion_is_given_its_rows_of_all_that_has_rows(split):
    mask, shared = torch.arange(4), torch.zeros(1, 3)
    split[0].after(None, (BATCH, [mask]), {"pair": (mask, shared), "more": {"mask": mask}, "word": "x"}, BATCH)

    (x, (first,)), kwargs = split[1].given
    assert torch.equal(BATCH[[0, 2]], x)
    assert first.tolist() == kwargs["pair"][0].tolist() == kwargs["more"]["mask"].tolist() == [0, 2]
    assert kwargs["pair"][1] is shared
    assert kwargs["word"] == "x"
    assert split[2].given[1]["pair"][0].tolist() == [3]


def test_an_unchanged_value_stays_the_same_object(split):
    rest = torch.ones(4)
    (_, same), kwargs = split[0].before(None, (BATCH, rest), {"pair": (rest, rest)})

    assert same is rest
    assert kwargs["pair"][0] is rest


def test_one_insertion_for_all_rows_is_given_the_batch_itself():
    a = Plus(1)
    Split.of([a] * 4, CPU).after(None, (BATCH,), {}, BATCH)

    assert a.given[0][0] is BATCH


def test_gradients_go_to_the_rows_they_come_from(split):
    x = BATCH.clone().requires_grad_()
    (split[0].after(None, (x,), {}, x) * torch.tensor([1.0, 2, 3, 4]).view(-1, 1)).sum().backward()

    assert torch.equal(torch.tensor([1.0, 2, 3, 4]).view(-1, 1).expand(4, 3), x.grad)


class Longer(Plus):
    def before(self, target, args, kwargs):
        return (torch.cat([args[0], args[0]], 1), *args[1:]), kwargs


class Masks(Plus):
    def before(self, target, args, kwargs):
        return args, {"mask": kwargs["mask"] + 1}


class Adds(Plus):
    def before(self, target, args, kwargs):
        return args, {**kwargs, "more": 1}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Longer, r"turns \[1, 3\] into \[1, 6\], so rows of a batch cannot go"),
        (Masks, r"turns a tensor that all rows share, \[1, 3\], into another, so rows"),
        (Adds, "turns its input into something else"),
    ],
)
def test_deltas_that_cannot_act_per_row_are_refused(kind, why):
    with pytest.raises(RouteError, match=why):
        Split.of([kind(1), None, None, None], CPU).before(None, (BATCH,), {"mask": torch.ones(1, 3)})
