"""Training in bfloat16, and in float32 with autocast."""

from __future__ import annotations

import math

import pytest
import torch

from tests.backbones import bert
from tests.training.matrix import HEADED, KINDS, put_on, require_carries_over, train_plainly


def half_precision() -> torch.nn.Module:
    """A backbone in bfloat16."""
    return bert().bfloat16()


@pytest.mark.parametrize("kind", KINDS)
class TestPrecision:
    def test_a_delta_trained_in_bfloat16_carries_over(self, kind, tmp_path):
        backbone = half_precision()
        delta = put_on(backbone, kind, train=HEADED)
        losses = train_plainly(backbone, 3)

        assert all(map(math.isfinite, losses))
        assert {tensor.dtype for tensor in delta.state_dict().values()} == {torch.bfloat16}
        require_carries_over(delta, tmp_path, half_precision)

    def test_a_delta_trained_under_autocast_stays_in_float32_and_carries_over(self, kind, tmp_path):
        backbone, plain = bert(), bert()
        delta = put_on(backbone, kind, train=HEADED)
        put_on(plain, kind, train=HEADED)

        def call(**batch):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return backbone(**batch)

        losses = train_plainly(backbone, 3, call=call)
        assert losses == pytest.approx(train_plainly(plain, 3), abs=0.05)  # bfloat16 has three digits
        assert {tensor.dtype for tensor in delta.state_dict().values()} == {torch.float32}
        require_carries_over(delta, tmp_path)
