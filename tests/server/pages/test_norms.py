"""Norms of modules, read without torch."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from deltahub.errors import CheckpointError
from deltahub.server.pages.norms import UPDATE, VALUES, module_norms, scale_of, split_name

RANDOM = np.random.default_rng(7)
DOWN, UP = RANDOM.standard_normal((2, 5)).astype(np.float32), RANDOM.standard_normal((4, 2)).astype(np.float32)


def test_a_low_rank_pair_counts_as_what_it_adds_to_the_weight():
    data = save({"h.3.q.deltas.lora_A": DOWN, "h.3.q.deltas.lora_B": UP})
    (norm,) = module_norms(data, {"lora_r": 2, "lora_alpha": 8})
    assert norm.norm == pytest.approx(4 * np.linalg.norm(UP @ DOWN), rel=1e-6)
    assert (norm.address, norm.block, norm.series, norm.measure, norm.parameters) == ("h.3.q", 3, "h.*.q", UPDATE, 18)


def test_the_norm_of_an_update_has_the_size_of_its_scale_and_the_strength_of_the_delta():
    data = save({"q.deltas.lora_A": DOWN, "q.deltas.lora_B": UP})
    (norm,) = module_norms(data, {"lora_r": 2, "lora_alpha": -8, "strength": 0.5})
    assert norm.norm == pytest.approx(2 * np.linalg.norm(UP @ DOWN), rel=1e-6)


@pytest.mark.parametrize("beside", ["lora_E", "lora_magnitude_vector"])
def test_a_pair_that_other_tensors_change_counts_by_its_values(beside):
    data = save({"q.deltas.lora_A": DOWN, "q.deltas.lora_B": UP, f"q.deltas.{beside}": UP[0]})
    (norm,) = module_norms(data, {"lora_r": 2, "lora_alpha": 8})
    assert norm.measure == VALUES


def test_a_pair_of_a_high_rank_counts_the_same_and_costs_no_more_than_its_size():
    rank = 1_000_000  # a square of it would be terabytes
    pair = {"q.lora_A": np.ones((rank, 1), np.float32), "q.lora_B": np.ones((2, rank), np.float32)}
    (norm,) = module_norms(save(pair), {})
    assert norm.norm == pytest.approx(rank * math.sqrt(2), rel=1e-6)


def test_anything_else_counts_as_the_norm_of_its_values():
    data = save({"h.0.ff.deltas.down.weight": DOWN, "h.0.ff.deltas.down.bias": UP[0], "head.weight": UP})
    first, head = module_norms(data, {})
    assert first.norm == pytest.approx(math.hypot(np.linalg.norm(DOWN), np.linalg.norm(UP[0])), rel=1e-6)
    assert (head.address, head.block, head.measure) == ("head", None, VALUES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.0.q.deltas.lora_A", ("a.0.q", "lora_A")),
        ("a.0.q.deltas.q.lora_A", ("a.0.q", "q.lora_A")),
        ("deltas.x", ("", "x")),
        ("base_model.model.a.0.q.lora_A.weight", ("a.0.q", "lora_A.weight")),
        ("a.0.q.lora_B.default.weight", ("a.0.q", "lora_B.default.weight")),
        ("a.weight", ("a", "weight")),
        ("w", ("w", "w")),
    ],
)
def test_the_module_of_a_tensor_is_known_by_its_name(name, expected):
    assert split_name(name) == expected


def test_pairs_as_peft_writes_them_are_found_too():
    names = ("base_model.model.h.1.q.lora_A.weight", "base_model.model.h.1.q.lora_B.weight")
    (norm,) = module_norms(save(dict(zip(names, (DOWN, UP), strict=True))), {"r": 2, "lora_alpha": 2})
    assert (norm.address, norm.measure) == ("h.1.q", UPDATE)
    assert norm.norm == pytest.approx(np.linalg.norm(UP @ DOWN), rel=1e-6)


def test_each_part_of_a_fused_layer_has_its_own_pair():
    data = save(
        {f"h.0.qkv.deltas.{part}.lora_{side}": value for part in "qv" for side, value in (("A", DOWN), ("B", UP))}
    )
    (norm,) = module_norms(data, {})
    assert norm.norm == pytest.approx(math.sqrt(2) * np.linalg.norm(UP @ DOWN), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.uint8])
def test_every_plain_dtype_is_read(dtype):
    values = np.arange(6).astype(dtype)
    (norm,) = module_norms(save({"a.0.x.deltas.w": values}), {})
    assert norm.norm == pytest.approx(np.linalg.norm(np.arange(6.0)))


def bfloat16(values: np.ndarray, dtype: str = "BF16") -> bytes:
    body = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    head = f'{{"a.0.x.deltas.w":{{"dtype":"{dtype}","shape":[{values.size}],"data_offsets":[0,{len(body)}]}}}}'.encode()
    return struct.pack("<Q", len(head)) + head + body


def test_bfloat16_is_read_though_numpy_has_none():
    (norm,) = module_norms(bfloat16(np.array([1.0, -2.0, 0.5])), {})
    assert norm.norm == pytest.approx(math.sqrt(5.25))


def test_blocks_are_in_the_order_of_their_numbers():
    data = save({f"h.{at}.x.deltas.w": UP for at in (10, 9, 2)})
    assert [norm.block for norm in module_norms(data, {})] == [2, 9, 10]


def test_values_that_are_not_finite_give_a_norm_that_is_not():
    data = save({"a.0.x.deltas.w": np.array([np.nan, 1.0]), "a.1.x.deltas.w": np.array([np.inf])})
    first, second = module_norms(data, {})
    assert math.isnan(first.norm)
    assert math.isinf(second.norm)


def test_an_invalid_safetensors_file_is_one_clear_error():
    for data in (b"", b"\xff" * 20, save({"a": UP})[:-1]):
        with pytest.raises(CheckpointError, match="not a safetensors file"):
            module_norms(data, {})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 1.0),
        ({"lora_r": 8, "lora_alpha": 16}, 2.0),
        ({"lora_r": 4, "lora_alpha": 16, "use_rslora": True}, 8.0),
        ({"r": 8, "lora_alpha": 8}, 1.0),
        ({"lora_r": "x", "lora_alpha": 8}, 1.0),
        ({"lora_r": -1, "lora_alpha": 8}, 1.0),
    ],
)
def test_the_scale_is_the_one_of_the_config(config, expected):
    assert scale_of(config) == expected
