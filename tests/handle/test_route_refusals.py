"""What cannot be routed is refused in a sentence, and nothing is guessed."""

import pytest
import torch
from torch import nn

from deltahub import LoraModel, route
from deltahub.errors import RouteError
from tests.backbones import bert, untouched
from tests.engine.crowds import NOT_ROUTED, four_rows, one_by_one, put_on, routed


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], r"A route lists a delta or None for each row of the batch, got \[\]"),
        ("en", "A route lists a delta or None for each row of the batch, got 'en'"),
        (["de"], "'de' is not a delta on this backbone, which has 'en', 'off'"),
        ([3], "3 is not a delta on this backbone"),
        (["off"], r"'off' is detached. Call attach\(\) first"),
    ],
)
def test_a_delta_that_cannot_be_routed_is_refused(rows, why):
    backbone = bert()
    put_on(backbone, "lora", "en")
    put_on(backbone, "lora", "off").detach()

    with untouched(backbone), pytest.raises(RouteError, match=why), route(backbone, rows):
        pass


def test_deltas_of_other_backbones_are_refused():
    backbone = bert()
    en = put_on(backbone, "lora", "en")
    stranger, removed = put_on(bert(), "lora", "en"), put_on(backbone, "lora", "gone")
    removed.remove()

    for delta in (stranger, removed):
        with pytest.raises(RouteError, match="is not a delta on this backbone"), route(backbone, [en, delta]):
            pass
    with pytest.raises(RouteError, match="There is no delta on this backbone"), route(bert(), [None]):
        pass


def test_a_merged_delta_is_refused():
    backbone = bert()
    put_on(backbone, "lora", "en").merge()

    with (
        pytest.raises(RouteError, match=r"'en' is merged into the backbone's weights.*unmerge"),
        route(backbone, [None]),
    ):
        pass


@pytest.mark.parametrize("count", [3, 5])
def test_a_batch_of_another_size_is_refused_with_both_numbers(count):
    backbone = bert()
    put_on(backbone, "lora", "en")

    with route(backbone, ["en"] * count), pytest.raises(RouteError, match=f"route has {count} rows, the batch has 4 "):
        backbone(**four_rows(backbone))


@pytest.mark.parametrize("beams", [0, -1, 1.5])
def test_beams_are_a_count(beams):
    backbone = bert()
    put_on(backbone, "lora", "en")

    with pytest.raises(RouteError, match=f"beams must be a whole number of at least 1, got {beams}"):
        route(backbone, ["en"], beams=beams).__enter__()


class Turned(nn.Module):
    """Passes its rows on as the second dimension, as some attentions do."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(50, 4), nn.Linear(4, 4)

    def forward(self, input_ids):
        return self.layer(self.embed(input_ids).transpose(0, 1)).transpose(0, 1)


def test_a_module_that_is_given_rows_second_is_refused_whatever_the_length():
    backbone = Turned()
    LoraModel(backbone, modified_modules=["layer"], name="en")

    with route(backbone, ["en", None]):
        with pytest.raises(RouteError, match="route has 2 rows, the batch has 3 "):
            backbone(torch.ones(2, 3, dtype=torch.long))
        with pytest.raises(RouteError, match=r"layer is given \[2, 2, 4\], and it is not certain that the first"):
            backbone(torch.ones(2, 2, dtype=torch.long))


def test_a_batch_as_long_as_its_rows_is_routed_where_rows_come_first():
    backbone = bert()
    put_on(backbone, "lora", "en")
    batch = {"input_ids": torch.arange(16).view(4, 4)}
    rows = ["en", None, None, "en"]

    assert torch.allclose(one_by_one(backbone, rows, batch), routed(backbone, rows, batch), atol=1e-5)


@pytest.mark.parametrize("kind", sorted(NOT_ROUTED))
def test_a_delta_that_changes_the_length_is_refused_with_its_type(kind):
    backbone = bert()
    put_on(backbone, kind, "long")
    put_on(backbone, "lora", "en", 1)

    with untouched(backbone), pytest.raises(RouteError, match=f"'long' is of type {kind}(,| and) "):
        route(backbone, ["long", "en"]).__enter__()


def test_a_delta_that_changes_the_length_is_silent_while_others_are_routed():
    backbone = bert()
    put_on(backbone, "lora", "en")
    rows, batch = ["en", None, None, "en"], four_rows(backbone)
    expected = routed(backbone, rows, batch)
    for kind in NOT_ROUTED:
        put_on(backbone, kind, kind)

    assert torch.equal(expected, routed(backbone, rows, batch))
