"""Deltas on backbones in half precision, and in float32 with autocast."""

from __future__ import annotations

import math

import pytest
import torch

from deltahub import AutoDeltaModel, LoraModel
from deltahub.errors import ConfigError
from tests.backbones import bert, equal, forward, logits_of, stir
from tests.training.matrix import HEADED, KINDS, answers, document, put_on, require_carries_over, train_plainly


def half_precision() -> torch.nn.Module:
    """A backbone in bfloat16."""
    return bert().bfloat16()


def dtypes_of(delta):
    """The dtypes of a delta's own parameters."""
    return {parameter.dtype for parameter in delta.parameters()}


@pytest.mark.parametrize("kind", KINDS)
class TestPrecision:
    def test_a_delta_on_a_backbone_in_bfloat16_is_trained_in_float32_and_carries_over(self, kind, tmp_path):
        backbone = half_precision()
        delta = put_on(backbone, kind, train=HEADED)
        losses = train_plainly(backbone, 3)

        assert all(map(math.isfinite, losses))
        assert dtypes_of(delta) == {torch.float32}
        assert delta.state_dict()["classifier.weight"].dtype == answers(backbone).dtype == torch.bfloat16
        require_carries_over(delta, tmp_path, half_precision)

    def test_a_delta_has_the_precision_that_is_asked_for_and_keeps_it_in_its_file(self, kind, tmp_path):
        backbone = half_precision()
        delta = AutoDeltaModel.from_config(document(kind), backbone, dtype=backbone.dtype)
        delta.freeze_module()
        stir(delta)
        delta.save_finetuned(tmp_path)

        assert dtypes_of(delta) == {torch.bfloat16}
        assert dtypes_of(AutoDeltaModel.from_finetuned(tmp_path, half_precision())) == {torch.bfloat16}
        wider = AutoDeltaModel.from_finetuned(tmp_path, half_precision(), dtype=torch.float32)
        assert dtypes_of(wider) == {torch.float32}
        assert equal(wider.state_dict(), {name: tensor.float() for name, tensor in delta.state_dict().items()})

    def test_a_delta_in_half_precision_is_computed_in_that_of_its_backbone(self, kind):
        narrow, wide = bert(), bert()
        deltas = [AutoDeltaModel.from_config(document(kind), backbone) for backbone in (narrow, wide)]
        for delta in deltas:
            stir(delta)
            for insertion in delta.insertions.values():
                insertion.bfloat16()
        for insertion in deltas[1].insertions.values():
            insertion.float()

        assert (logits_of(narrow) - logits_of(wide)).abs().max() < 1e-5

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


def test_a_small_learning_rate_moves_a_delta_on_a_backbone_in_half_precision():
    backbone = half_precision()
    delta = LoraModel(backbone, lora_r=2)
    delta.freeze_module()
    before = {name: parameter.detach().clone() for name, parameter in delta.named_parameters()}
    optimizer = torch.optim.AdamW(delta.parameters(), lr=1e-6)
    for _ in range(2):  # B is zero in the first step, and no gradient reaches A
        forward(backbone).float().square().mean().backward()
        optimizer.step()

    moved = [(parameter != before[name]).float().mean() for name, parameter in delta.named_parameters()]
    assert min(moved) > 0.9


def test_a_gradient_scaler_takes_the_gradients_of_a_delta_on_a_backbone_in_float16():
    backbone = bert().half()
    delta = LoraModel(backbone, lora_r=2)
    delta.freeze_module()
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.AdamW(delta.parameters())
    scaler.scale(forward(backbone).float().mean()).backward()
    scaler.step(optimizer)  # refuses gradients in float16

    assert logits_of(backbone).dtype == torch.float16


def test_a_wider_backbone_has_wider_deltas():
    assert dtypes_of(LoraModel(bert().double())) == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, "bfloat16"])
def test_a_precision_that_nothing_trains_in_is_refused(dtype):
    with pytest.raises(ConfigError, match=r"dtype must be torch\.float32, .*, got"):
        LoraModel(bert(), dtype=dtype)
