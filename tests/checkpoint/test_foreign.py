"""A delta of another library is described by its own files, and only those that belong to it are taken."""

from __future__ import annotations

import contextlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deltahub.checkpoint.from_files import describe, holds_delta
from deltahub.checkpoint.gguf_header import read_header
from deltahub.checkpoint.manifest import Manifest
from deltahub.errors import CheckpointError, PickleRefusedError
from tests.foreign import CARD, FOLDERS, llama_cpp, opendelta, peft, tensors


@pytest.fixture(params=FOLDERS)
def made(request, tmp_path):
    write, facts = FOLDERS[request.param]
    write(tmp_path)
    return request.param, tmp_path, facts


def of(folder: Path) -> Manifest:
    return describe(folder, allow_pickle=True)


def test_each_format_states_its_method_its_options_and_its_base_model(made):
    name, folder, facts = made
    manifest = of(folder)

    assert holds_delta(folder)
    assert (manifest.kind, manifest.config["format"]) == ("files", name)
    assert facts.items() <= manifest.config.items()


def test_what_a_trainer_leaves_beside_a_delta_is_not_taken(made):
    _, folder, _ = made
    before = of(folder)
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "checkpoint-100").mkdir()

    assert of(folder) == before
    assert {entry.path for entry in before.files} == {path.name for path in folder.iterdir()} - {
        "optimizer.pt",
        "checkpoint-100",
    }


def test_the_card_adds_its_license_tags_and_results(made):
    _, folder, _ = made
    (folder / "README.md").write_text(CARD)
    manifest = of(folder)

    assert manifest.config["metadata"] == {"license": "mit", "tags": ["lora", "sft"]}
    assert manifest.metrics == (
        {"task_type": "text-generation", "dataset_name": "gsm8k", "metric_type": "accuracy", "metric_value": 0.5},
    )


def test_a_base_model_that_is_only_a_path_comes_from_the_card(tmp_path):
    peft(tmp_path)
    assert of(tmp_path).config["base_model"] == "/home/me/llama"
    (tmp_path / "README.md").write_text(CARD)
    assert of(tmp_path).config["base_model"] == "meta-llama/Llama-2-7b-hf"


@pytest.mark.parametrize(
    "card", ["---\n: [\n---\n", "---\n- a\n---\n", "---\ntags: 3\nmodel-index: 5\n---\n", "none", ""]
)
def test_a_card_that_states_nothing_usable_changes_nothing(tmp_path, card):
    peft(tmp_path)
    (tmp_path / "README.md").write_text(card)
    assert "metadata" not in of(tmp_path).config
    assert of(tmp_path).metrics == ()


def test_a_pickle_is_refused_unless_it_is_allowed(tmp_path):
    opendelta(tmp_path)
    with pytest.raises(PickleRefusedError, match="allow_pickle"):
        describe(tmp_path)


def test_safetensors_stand_before_the_pickle_of_the_same_weights(tmp_path):
    peft(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x02}.")
    assert "adapter_model.bin" not in {entry.path for entry in describe(tmp_path).files}


def test_a_config_without_weights_is_named_as_incomplete(tmp_path):
    peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        describe(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    peft(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        describe(tmp_path)


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    peft(folder)
    (tmp_path / "secret").write_text("key")
    (folder / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside the folder"):
        describe(folder)


def test_the_links_of_a_snapshot_in_the_cache_of_hugging_face_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "repo/snapshots/0a", tmp_path / "repo/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    peft(blobs)
    for path in list(blobs.iterdir()):
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert of(snapshot) == of(blobs)


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"delta_type": 3}, []])
def test_a_backbone_or_anything_else_is_not_a_delta(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors("encoder.weight"), tmp_path / "model.safetensors")
    assert not holds_delta(tmp_path)
    with pytest.raises(CheckpointError, match="holds no delta"):
        describe(tmp_path)


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    llama_cpp(folder)
    return (folder / "lora.gguf").read_bytes()


@given(position=st.integers(0, 300), flipped=st.integers(1, 255), length=st.integers(0, 600))
def test_a_damaged_gguf_header_is_read_or_refused_and_nothing_else(gguf_bytes, position, flipped, length):
    content = bytearray(gguf_bytes)
    content[position] ^= flipped
    content = content[:length]
    with contextlib.suppress(CheckpointError):
        read_header(lambda start, end: bytes(content[start:end]), len(content), "lora.gguf")


@pytest.mark.parametrize("length", [0, 3, 4, 30, 100])
def test_a_truncated_gguf_header_is_refused(gguf_bytes, length):
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        read_header(lambda start, end: gguf_bytes[start:end], length, "lora.gguf")


def gguf_with(*fields: bytes) -> bytes:
    """Return a GGUF header with one field after the number of tensors and of keys."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + b"".join(fields)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (gguf_with(struct.pack("<If", 6, float("nan"))), "is nan"),
        (gguf_with(struct.pack("<IIQ", 9, 0, 60_000), bytes(60_000)), "60000 entries"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 40_000),
            "dimensions",
        ),
    ],
    ids=["a number that JSON cannot hold", "a long list", "too many dimensions"],
)
def test_a_gguf_header_that_no_adapter_has_is_refused(content, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        read_header(lambda start, end: content[start:end], len(content), "lora.gguf")


def test_of_options_that_are_too_long_the_longest_are_left_out(tmp_path):
    peft(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "notes": "x" * (64 << 10)}))
    assert of(tmp_path).config["options"] == {"r": 4, "target_modules": ["q_proj"]}
