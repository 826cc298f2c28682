"""A plain loop with accelerate: what `prepare` gives trains the delta, and `save_state` keeps it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from tests.backbones import bert
from tests.training.matrix import HEADED, KINDS, answers, batches, optimizer_for, put_on, require_carries_over


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """On the CPU; its state is the process's, so it is put back."""
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def train(accelerator: Accelerator, backbone: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """The loop of accelerate's manual."""
    for batch in batches(steps):
        with accelerator.accumulate(backbone):
            accelerator.backward(backbone(**batch).loss)
            accelerator.clip_grad_norm_(backbone.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
class TestAccelerate:
    def test_a_trained_delta_carries_over(self, kind, tmp_path, accelerator):
        backbone = bert()
        delta = put_on(backbone, kind, train=HEADED)
        prepared, optimizer = accelerator.prepare(backbone, optimizer_for(backbone))
        train(accelerator, prepared, optimizer, 2)

        require_carries_over(delta, tmp_path)

    def test_a_saved_state_goes_on_where_it_was(self, kind, tmp_path, accelerator):
        backbone = bert()
        put_on(backbone, kind, train=HEADED)
        prepared, optimizer = accelerator.prepare(backbone, optimizer_for(backbone))
        accelerator.save_state(str(tmp_path))
        train(accelerator, prepared, optimizer, 2)
        expected = answers(backbone)
        train(accelerator, prepared, optimizer, 2)
        assert not torch.equal(expected, answers(backbone))

        accelerator.load_state(str(tmp_path))
        train(accelerator, prepared, optimizer, 2)
        assert torch.equal(expected, answers(backbone))
