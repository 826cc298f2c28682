"""Rows of a batch through heads that deltas trained: backbone tensors of which each delta has a value of its own."""

import pytest
import torch
from torch import nn

from deltahub import LoraModel, deltas_of, route
from deltahub.errors import RouteError
from tests.backbones import bert, gpt2, logits_of, t5, tensors_of, untouched, vit
from tests.engine.crowds import four_rows, one_by_one, put_on, routed, with_head


def test_rows_go_through_the_heads_of_their_deltas():
    backbone = bert()
    for seed, name in enumerate(("en", "fr", "silent")):
        with_head(backbone, name, seed)
    tensors = tensors_of(backbone)
    names = [name for name, _ in backbone.named_modules()]
    batch = four_rows(backbone)

    for rows in (["en", "fr", None, "en"], ["silent", "fr", None, None], ["fr"] * 4, [None] * 4):
        expected = one_by_one(backbone, rows, batch)
        assert torch.allclose(expected, routed(backbone, rows, batch), atol=1e-5)
        assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in tensors.items())
        assert names == [name for name, _ in backbone.named_modules()]
        assert not backbone.classifier._forward_hooks


@pytest.mark.parametrize(
    ("make", "trained"),
    [
        (bert, "layer_norm"),
        (bert, "embeddings.word_embeddings"),
        (gpt2, "attn.c_proj"),
        (gpt2, "wte"),
        (t5, "lm_head"),
        (vit, "classifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_other_layers_that_deltas_trained_are_routed_too(make, trained):
    backbone = make()
    for seed, name in enumerate(("en", "fr")):
        delta = put_on(backbone, "adapter", name, seed)
        delta.freeze_module(exclude=["deltas", trained])
        own = [p for name, p in backbone.named_parameters() if p.requires_grad and ".deltas." not in name]
        assert own
        with torch.no_grad():
            for parameter in own:
                parameter.add_(
                    0.3 * (seed + 1) * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                )
        delta.detach()
    for delta in deltas_of(backbone).values():
        delta.attach()
    rows, batch = ["en", "fr", None, "en"], four_rows(backbone)

    assert torch.allclose(one_by_one(backbone, rows, batch), routed(backbone, rows, batch), atol=1e-4)


def test_a_tensor_that_no_row_can_have_of_its_own_is_named():
    backbone = nn.ModuleDict({"norm": nn.BatchNorm1d(4), "layer": nn.Linear(4, 4)})
    for name in ("a", "b"):
        LoraModel(backbone, modified_modules=["layer"], name=name).freeze_module(exclude=["deltas", "norm"])

    with untouched(backbone), pytest.raises(RouteError, match=r"norm\.\w+ has a value of its own .* BatchNorm1d"):
        route(backbone, ["a", "b"]).__enter__()
    with route(backbone, ["b", "b"]):  # whose values these are
        pass


def test_heads_of_several_deltas_are_not_trained_in_one_batch():
    backbone = bert().train()
    for seed, name in enumerate(("en", "fr")):
        with_head(backbone, name, seed)
    batch = four_rows(backbone)

    with (
        route(backbone, ["en", "fr", "en", "fr"]),
        pytest.raises(
            RouteError, match=r"classifier\.\w+ is trained by 'en' and by 'fr': heads of several deltas cannot"
        ),
    ):
        backbone(**batch)
    with route(backbone, ["fr", None, "fr", "fr"]):  # the head in force, and the backbone's own, which nobody trains
        backbone(**batch).logits[0].sum().backward()
    assert backbone.classifier.weight.grad.abs().sum() > 0


def test_a_delta_that_reads_the_weights_of_a_routed_head_is_refused():
    backbone = bert()
    first = LoraModel(backbone, modified_modules=["classifier"], lora_r=2, use_dora=True, name="dora")
    second = LoraModel(backbone, name="other")
    second.freeze_module(exclude=["deltas", "classifier"])
    with torch.no_grad():
        backbone.classifier.weight.add_(1)

    with (
        pytest.raises(RouteError, match="classifier has other weights for some rows"),
        route(backbone, [first, second]),
    ):
        logits_of(backbone)
    logits_of(backbone)
