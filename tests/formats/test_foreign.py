"""A damaged or hostile file of PEFT or OpenDelta is refused by one sentence, before memory is taken for it."""

from __future__ import annotations

import io
import json
import os
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deltahub import AutoDeltaModel, LoraModel, export_peft
from deltahub.checkpoint import checkpoint
from deltahub.engine.filling import refuse_larger
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError, IntegrityError
from deltahub.formats.files import read_config
from deltahub.handle.loading import read_any
from tests.backbones import bert

QUERY = "bert.encoder.layer.0.attention.self.query"
NORM = "bert.encoder.layer.0.attention.output.LayerNorm"
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [QUERY]}
SAVED = {"delta_type": "lora", "lora_r": 2, "lora_alpha": 4}
SIDES = {"A": (2, 16), "B": (16, 2)}


@pytest.fixture(scope="module")
def backbone():
    return bert()


def adapter(folder, config, tensors=None):
    """An adapter of PEFT; its config is bytes or what changes a plain LoRA's."""
    plain = {f"base_model.model.{QUERY}.lora_{side}.weight": torch.ones(shape) for side, shape in SIDES.items()}
    save_file(plain if tensors is None else tensors, folder / "adapter_model.safetensors")
    data = config if isinstance(config, bytes) else json.dumps(LORA | config).encode()
    (folder / "adapter_config.json").write_bytes(data)
    return folder


def opendelta(folder, config, tensors=None):
    """The same of OpenDelta."""
    plain = {f"{QUERY}.lora.lora_{side}": torch.ones(shape) for side, shape in SIDES.items()}
    torch.save(plain if tensors is None else tensors, folder / "pytorch_model.bin")
    data = config if isinstance(config, bytes) else json.dumps(SAVED | config).encode()
    (folder / "config.json").write_bytes(data)
    return folder


@pytest.mark.parametrize("make", [adapter, opendelta])
def test_a_plain_file_is_read(make, tmp_path, backbone):
    assert read_any(make(tmp_path, {}), backbone, allow_pickle=True).document["lora_r"] == 2


@pytest.mark.parametrize(
    ("make", "config"),
    [
        *((adapter, {"lora_alpha": value}) for value in ("x", None, [1], True)),
        *((adapter, {"r": value}) for value in (0, -1, 2**21, 10**30, 2.5, 2.0)),
        (adapter, {"layers_to_transform": 0.0}),
        *(
            (adapter, {"alpha_pattern": value})
            for value in ([1], {"query": "x"}, {"(": 3}, {"(?=q)": 3}, {"q" * 2000: 3})
        ),
        *((adapter, {"target_modules": value}) for value in (3, [3], [""], ["q"] * 100_001)),
        (adapter, {"rank_pattern": {"query": 2**21}}),
        (adapter, {"modules_to_save": ["q"] * 257}),
        (adapter, {"lora_dropout": "x"}),
        (adapter, {"peft_type": ["LORA"]}),
        (adapter, {"peft_type": "PROMPT_TUNING"}),
        *((opendelta, {"delta_type": value}) for value in (5, None, "ia3", "layer_norm")),
        (opendelta, {"lora_r": "x"}),
        (opendelta, {"lora_r": 2**21}),
    ],
)
def test_a_value_that_its_maker_never_writes_is_refused(make, config, tmp_path, backbone):
    with pytest.raises(ConfigError) as caught:
        read_any(make(tmp_path, config), backbone, allow_pickle=True)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("make", [adapter, opendelta])
@pytest.mark.parametrize(
    "data", [b"", b"1", b"null", b'"delta_type"', b'["peft_type"]', b"[" * 100_000, b'{"delta_type":NaN}']
)
def test_a_config_that_is_not_an_object_is_a_checkpoint_error(make, data, tmp_path, backbone):
    with pytest.raises(CheckpointError):
        read_any(make(tmp_path, data), backbone, allow_pickle=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"r": 8, "r": 16, "peft_type": "LORA"}', "twice"),
        (json.dumps(LORA).encode("utf-16"), "is not JSON"),
        (json.dumps(LORA).encode("utf-8-sig"), "begins with a byte-order mark; save it as UTF-8 without one"),
        (b'{"peft_type": "LORA", "x": ' + b"[" * 65 + b"]" * 65 + b"}", "nests too deeply"),
        (b'{"peft_type": "LORA", "lora_alpha": 1e999}', "too large"),
        (b'{"peft_type": "LORA", "lora_alpha": 1' + b"0" * 400 + b"}", "too large"),
        (b'{"peft_type": "LORA"} x', "is not JSON"),
        (b" " * (9 << 20), "8388608 at most"),
    ],
)
def test_json_that_others_may_read_differently_is_refused(data, reason, tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_config(tmp_path / "adapter_config.json", "peft_adapter.v1")


def sparse(path, size):
    """A safetensors file of one tensor, whose bytes were never written."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)


def test_tensors_that_are_larger_than_the_backbone_are_not_read(tmp_path):
    backbone, size = bert(), 1 << 40
    sparse(adapter(tmp_path, {}) / "adapter_model.safetensors", size)
    with pytest.raises(CheckpointError, match=r"bytes, more than a delta for this Bert.* can have"):
        read_any(tmp_path, backbone, allow_pickle=False)
    os.truncate(opendelta(tmp_path, {}) / "pytorch_model.bin", size)
    with pytest.raises(CheckpointError, match="can have"):
        read_any(tmp_path, backbone, allow_pickle=True)
    sparse(tmp_path / "delta.safetensors", size)
    (tmp_path / "delta_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="can have"):
        read_any(tmp_path, backbone, allow_pickle=False)
    with pytest.raises(CheckpointError, match="can have"):
        LoraModel(backbone, modified_modules=[QUERY]).load_checkpoint(tmp_path / "delta.safetensors")


def test_the_codes_of_a_quantised_backbone_count_among_its_values(tmp_path):
    sparse(tmp_path / "delta.safetensors", 1 << 30)
    backbone = nn.Module()
    with pytest.raises(CheckpointError, match="can have"):
        refuse_larger(tmp_path / "delta.safetensors", backbone)
    backbone.register_buffer("qweight", torch.empty(1 << 28, dtype=torch.int32, device="meta"))
    refuse_larger(tmp_path / "delta.safetensors", backbone)


def test_a_pickle_whose_parts_are_longer_than_itself_is_refused(tmp_path, backbone):
    path = opendelta(tmp_path, {}) / "pytorch_model.bin"
    parts = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in parts.namelist():
            packed.writestr(name, parts.read(name))
    with pytest.raises(CheckpointError, match="its parts are packed"):
        read_any(tmp_path, backbone, allow_pickle=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "adapter_config.json")
    with pytest.raises(IntegrityError, match="found a named pipe"):
        read_config(tmp_path / "adapter_config.json", "peft_adapter.v1")


PEFT_LORA = f"base_model.model.{QUERY}.lora_"


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({}, {f"{PEFT_LORA}A.weight": torch.ones(2**40, 0), f"{PEFT_LORA}B.weight": torch.ones(16, 2)}),
        ({}, {f"{PEFT_LORA}{side}.weight": torch.ones(s).to(torch.float8_e4m3fn) for side, s in SIDES.items()}),
        ({}, {f"{PEFT_LORA}{side}.weight": torch.ones(s, dtype=torch.int32) for side, s in SIDES.items()}),
        ({"use_dora": True}, None),
        ({"peft_type": "IA3"}, {f"base_model.model.{QUERY}.ia3_l": torch.ones(16)}),
        ({"peft_type": "LN_TUNING"}, {f"base_model.model.{NORM}.ln_tuning_layers.bias": torch.ones(7, 5, 3)}),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, {"prompt_embeddings": torch.tensor(1.0)}),
    ],
)
def test_tensors_of_peft_that_no_delta_has_are_refused(config, tensors, tmp_path, backbone):
    config = config | {"target_modules": None}
    with pytest.raises(DeltaHubError):
        read_any(adapter(tmp_path, config, tensors), backbone, allow_pickle=False)


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({}, {1: torch.ones(1)}),
        ({}, [torch.ones(1)]),
        ({}, {f"{QUERY}.lora.lora_{side}": torch.ones(shape, device="meta") for side, shape in SIDES.items()}),
        ({}, {f"{QUERY}.lora.lora_{side}": torch.ones(shape).to_sparse() for side, shape in SIDES.items()}),
        ({}, {f"{QUERY}.lora.lora_{side}": torch.ones(()) for side in "AB"}),
        ({}, {f"{QUERY}.lora.lora_{side}": torch.ones(1).expand(2**20, 2**10) for side in "AB"}),
        ({"delta_type": "bitfit"}, {f"{QUERY}.bias": torch.ones(1)}),
        ({"delta_type": "bitfit"}, {f"{QUERY}.bias": torch.ones(16, dtype=torch.bool)}),
    ],
)
def test_a_pickle_with_anything_but_plain_tensors_is_refused(config, tensors, tmp_path, backbone):
    with pytest.raises(DeltaHubError):
        AutoDeltaModel.from_finetuned(
            opendelta(tmp_path, config, tensors), backbone_model=backbone, allow_pickle=True, check_hash=False
        )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A LoRA of our own."""
    folder = tmp_path_factory.mktemp("own")
    delta = LoraModel(bert(), modified_modules=[QUERY], lora_r=2)
    delta.freeze_module(exclude=["deltas"])
    delta.save_finetuned(folder)
    return folder


@pytest.mark.parametrize(
    ("changed", "clause"),
    [
        ({"lora_A": None}, "has no lora_A"),
        ({"x": torch.ones(2)}, "has 'x', which is not part of it"),
        ({"lora_A": torch.ones(3, 16)}, r"is \[3, 16\], expected \[2, \.\.\.\]"),
        ({"lora_B": torch.tensor(1.0)}, r"is \[\], expected \[\.\.\., 2\]"),
        ({"lora_B": torch.ones(16, 2, dtype=torch.int32)}, "expected floats"),
        ({"lora_B": torch.full((16, 2), torch.nan)}, "not finite"),
    ],
)
def test_a_delta_whose_tensors_are_not_those_of_its_config_is_not_exported(own, changed, clause, tmp_path):
    document = checkpoint.read_document(own)
    tensors = load_file(own / "delta.safetensors") | {f"{QUERY}.deltas.{key}": value for key, value in changed.items()}
    kept = {key: value for key, value in tensors.items() if value is not None}
    fingerprint = checkpoint.read(own).fingerprint
    checkpoint.write(tmp_path, document, kept, fingerprint, "", save_file)
    with pytest.raises(CheckpointError, match=clause):
        export_peft(tmp_path, tmp_path / "adapter")
