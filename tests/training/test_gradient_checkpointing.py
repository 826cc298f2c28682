"""Gradient checkpointing computes parts of the backbone twice; the deltas inside get the gradients that they get without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.backbones import BACKBONES, forward, stir
from tests.grids import pairs
from tests.training.matrix import KINDS, put_on

pytestmark = pytest.mark.slow  # every delta type is trained


def gradients(backbone: nn.Module) -> dict[str, Tensor]:
    """The gradients of one pass in training mode, with the same dropout every time."""
    backbone.zero_grad(set_to_none=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        forward(backbone).square().mean().backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "name"), pairs(KINDS, ["bert", "gpt2", "llama", "t5"], always=["bert"]))
def test_gradients_are_those_without_checkpointing(kind, name):
    backbone = BACKBONES[name]()
    delta = put_on(backbone, kind)
    stir(delta)
    expected = gradients(backbone.train())
    assert expected.keys() == {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}

    for reentrant in (True, False):
        backbone.activation_checkpointing_enable({"use_reentrant": reentrant})
        assert backbone.is_activation_checkpointing
        found = gradients(backbone)
        assert expected.keys() == found.keys()
        for key, gradient in expected.items():  # to rounding: segments add up in an order of their own
            assert torch.allclose(gradient, found[key], rtol=1e-5, atol=1e-7), (key, reentrant)
