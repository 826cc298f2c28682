"""Deltas that are exact identities are found in their files."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltahub.checkpoint.effect import require_effect
from deltahub.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from deltahub.errors import CheckpointError


def judge(folder, config, tensors):
    """Write tensors and require an effect of them."""
    arrays = {name: np.full(3, value, dtype) for name, (value, dtype) in tensors.items()}
    save_file(arrays, folder / "delta.safetensors")
    files = [FileEntry(name, "0" * 64, 1) for name in ("delta.safetensors", "probe.safetensors")]
    entries = [TensorEntry(name, "F32", (3,)) for name in arrays]
    require_effect(folder, Manifest(config, tuple(files), tuple(entries), {}))


ZERO, ONE = (0, np.float32), (1, np.float32)
IDENTITIES = {
    "ia3": ({"delta_type": "ia3"}, {"a.deltas.default.ia3_l": ONE, "b.deltas.default.ia3_l": (1, np.float16)}),
    "peft_ia3": ({"peft_type": "IA3"}, {"base_model.model.a.ia3_l": (1, np.float64)}),
    "bitfit": ({"delta_type": "bitfit"}, {"a.deltas.default.bias": ZERO}),
    "layer_norm": (
        {"delta_type": "layer_norm"},
        {"a.deltas.default.weight": ZERO, "a.deltas.default.bias": ZERO},
    ),
    "adapter": (
        {"delta_type": "adapter"},
        {"a.deltas.up_proj.bias": ZERO, "a.deltas.up_proj.weight": ZERO, "a.deltas.down_proj.weight": ONE},
    ),
    "adalora": ({"delta_type": "adalora"}, {"a.deltas.lora_E": ZERO, "a.deltas.lora_A": ONE, "a.deltas.lora_B": ONE}),
    "vera": ({"delta_type": "vera"}, {"a.deltas.vera_lambda_b": ZERO, "a.deltas.vera_lambda_d": ONE}),
    "peft_vera": (
        {"peft_type": "VERA"},
        {"base_model.model.a.vera_lambda_b": ZERO, "base_model.model.a.vera_lambda_d": ONE, "base_model.vera_A": ONE},
    ),
    "lokr": ({"peft_type": "LOKR"}, {"base_model.model.a.lokr_w2": ZERO, "base_model.model.a.lokr_w1": ONE}),
    "loha": (
        {"format": "kohya"},
        {"lora_unet_a.hada_w1_b": ZERO, "lora_unet_a.hada_w2_a": ONE, "lora_unet_a.alpha": ONE},
    ),
    "oft": ({"delta_type": "weight_update"}, {"a.deltas.oft_R": ZERO}),
    "fused": (
        {"delta_type": "lora"},
        {f"a.deltas.{part}.lora_{side}": ZERO if side == "B" else ONE for part in "qv" for side in "BA"},
    ),
    "adapters": ({"method": "lora"}, {"a.loras.x.lora_B": ZERO, "a.loras.x.lora_A": ONE}),
    "labels": ({"peft_type": "LORA"}, {"a.lora_B.x.weight": ZERO, "a.lora_A.x.weight": ONE}),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_an_identity_is_refused_and_one_other_value_makes_it_none(tmp_path, kind):
    config, tensors = IDENTITIES[kind]
    with pytest.raises(CheckpointError, match="changes no output of its backbone"):
        judge(tmp_path, config, tensors)
    judge(tmp_path, config, {**tensors, next(iter(tensors)): (2, np.float32)})
    judge(tmp_path, config, {**tensors, "head.weight": ZERO})


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        ({"peft_type": "LN_TUNING"}, "base_model.model.norm.weight", ONE),
        ({"delta_type": "compacter"}, "a.deltas.up_sampler.W", ZERO),
        ({"delta_type": "adapter"}, "a.deltas.down_proj.weight", ZERO),
        ({"peft_type": "BOFT"}, "base_model.model.a.boft_R", ZERO),
        ({"options": {"composition_mode": "scale"}}, "a.loras.x.lora_B", ZERO),
        ({"delta_type": "union"}, "a.deltas.default.ia3_l", ONE),
        ({"delta_type": "ia3"}, "a.deltas.default.ia3_l", (1, np.int8)),
    ],
)
def test_what_cannot_be_proved_is_not_judged(tmp_path, config, name, value):
    judge(tmp_path, config, {name: value})
