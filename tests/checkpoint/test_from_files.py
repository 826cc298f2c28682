"""A set of files is described from their headers, and a whole delta gets the manifest that a push of its folder makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save, save_file

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.from_files import INCOMPLETE, describe_files
from deltahub.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from deltahub.checkpoint.safetensors_header import tensor_entries, tensor_table
from deltahub.errors import CheckpointError
from deltahub.files.atomic import sha256_file

DTYPES = st.sampled_from([np.float32, np.float16, np.int64, np.int8, np.bool_, np.float64])


def entries_of(folder: Path) -> list[FileEntry]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [FileEntry(path.relative_to(folder).as_posix(), *sha256_file(path)) for path in paths]


def described(folder: Path) -> tuple[Manifest, dict[str, int]]:
    """The manifest of a folder, and how many bytes were read of each file."""
    read: dict[str, int] = {}

    def ranged(entry: FileEntry, start: int, end: int) -> bytes:
        assert 0 <= start < end <= entry.size
        read[entry.path] = read.get(entry.path, 0) + end - start
        return (folder / entry.path).read_bytes()[start:end]

    return describe_files(entries_of(folder), ranged), read


def test_a_whole_delta_gets_the_manifest_of_a_push(checkpoint_folder):
    found, _ = described(checkpoint_folder)

    assert found == checkpoint.describe(checkpoint_folder)
    assert found.digest == checkpoint.describe(checkpoint_folder).digest


def test_of_weights_only_the_header_is_read(tmp_path):
    save_file({"w": np.zeros(100_000, np.float32)}, tmp_path / "model.safetensors")
    found, read = described(tmp_path)

    assert [tensor.name for tensor in found.tensors] == ["w"]
    assert read["model.safetensors"] < 200


def published(folder: Path, page: bytes | None) -> Manifest:
    """Lay beside a delta what a push to a hub does; the page takes the place of its card."""
    manifest = checkpoint.describe(folder)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    if page is not None:
        (folder / "README.md").replace(folder / "delta_card.md")
        (folder / "README.md").write_bytes(page)
    return manifest


@pytest.mark.parametrize("page", [None, b"---\ntags: [best]\n---\n# Edited\n"])
def test_files_added_by_a_push_to_a_hub_do_not_change_the_delta(checkpoint_folder, page):
    manifest = published(checkpoint_folder, page)
    assert described(checkpoint_folder)[0] == manifest


def test_a_delta_without_a_card_may_have_a_page(checkpoint_folder):
    (checkpoint_folder / "README.md").unlink()
    manifest = published(checkpoint_folder, None)
    (checkpoint_folder / "README.md").write_bytes(b"# A page\n")
    assert described(checkpoint_folder)[0] == manifest


@pytest.mark.parametrize("name", ["notes.txt", "delta.safetensors", "delta_card.md"])
def test_a_manifest_beside_other_files_than_its_own_is_one_of_them(checkpoint_folder, name):
    published(checkpoint_folder, b"# Edited\n")
    (checkpoint_folder / name).write_bytes(b"something else")
    found, _ = described(checkpoint_folder)
    assert found.kind == "files"
    assert {entry.path for entry in found.files} >= {"manifest.json", name}


def test_a_delta_among_other_files_is_recognised_by_its_config(checkpoint_folder):
    (checkpoint_folder / "training_args.bin").write_bytes(b"x")
    found, _ = described(checkpoint_folder)

    assert (found.kind, found.config["format"], found.config["delta_type"]) == ("files", "deltahub", "lora")
    assert found.parameters == {"total": 10, "delta": 8}


@pytest.mark.parametrize("name", ["delta.safetensors", "backbone.json"])
def test_a_delta_of_which_a_part_is_missing_or_changed_is_none_yet(checkpoint_folder, name):
    data = (checkpoint_folder / name).read_bytes()
    (checkpoint_folder / name).write_bytes(data[:-1] + b"!")
    changed, _ = described(checkpoint_folder)
    (checkpoint_folder / name).unlink()
    missing, _ = described(checkpoint_folder)

    assert (changed.kind, changed.config) == (missing.kind, missing.config) == ("files", {"format": INCOMPLETE})


def test_a_peft_adapter_says_its_method_and_base_model(tmp_path):
    config = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased", "task_type": None, "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "adapter_model.safetensors")
    found, _ = described(tmp_path)

    facts = {"format": "peft", "peft_type": "LORA", "base_model": "bert-base-uncased"}
    assert found.config == {**facts, "options": {"r": 8}}
    assert found.parameters == {"total": 6, "delta": 6}


def test_a_backbone_says_its_model_type(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    for shard in (1, 2):
        save_file({f"layer.{shard}": np.zeros(4, np.float32)}, tmp_path / f"model-0000{shard}-of-00002.safetensors")
    found, _ = described(tmp_path)

    assert found.config == {"format": "transformers", "model_type": "bert", "architectures": ["BertModel"]}
    assert [tensor.name for tensor in found.tensors] == ["layer.1", "layer.2"]
    assert found.parameters == {"total": 8, "delta": 0}


def test_files_may_lie_in_folders_and_be_anything(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/größe 1.txt").write_text("x")
    for name in ("adapter_config.json", "config.json", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"[1]")
    found, _ = described(tmp_path)

    assert (found.config, found.tensors) == ({"format": "files"}, ())
    assert Manifest.from_bytes(found.to_bytes(), found.digest) == found


def test_no_files_at_all_are_a_set_of_files_too(tmp_path):
    found, _ = described(tmp_path)
    assert Manifest.from_bytes(found.to_bytes(), found.digest) == found


@pytest.mark.parametrize("path", ["../x", "a/../x", "/x", "a//b", "a/./b", "a\\b", "a\x00", "a\n", "", "a/" * 40 + "b"])
def test_a_manifest_with_a_path_that_leads_elsewhere_is_refused(path):
    manifest = Manifest({"format": "files"}, (FileEntry(path, "0" * 64, 1),), (), {"total": 0, "delta": 0}, (), "files")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Manifest.from_bytes(manifest.to_bytes(), manifest.digest)


def test_the_files_of_a_delta_lie_in_no_folder(checkpoint_folder):
    manifest = checkpoint.describe(checkpoint_folder)
    moved = Manifest(
        manifest.config, (FileEntry("sub/x", "0" * 64, 1),), manifest.tensors, manifest.parameters, manifest.metrics
    )
    with pytest.raises(CheckpointError, match="cannot be read"):
        Manifest.from_bytes(moved.to_bytes(), moved.digest)


@given(st.dictionaries(st.text(max_size=5), st.tuples(DTYPES, st.lists(st.integers(0, 3), max_size=3)), max_size=4))
def test_a_header_is_read_as_the_library_reads_it(tmp_path_factory, tensors):
    data = save({name: np.zeros(shape, dtype) for name, (dtype, shape) in tensors.items()}, {"format": "pt"})
    path = tmp_path_factory.mktemp("header") / "x.safetensors"
    path.write_bytes(data)

    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (no dict)
        entries = [
            TensorEntry(name, part.get_dtype(), tuple(part.get_shape())) for name, part in sorted(slices.items())
        ]
    assert list(tensor_entries(lambda start, end: data[start:end], len(data), "x")) == entries
    assert list(tensor_table(path)) == entries


@given(st.binary(max_size=40))
def test_an_invalid_safetensors_file_is_one_clear_error(data):
    with pytest.raises(CheckpointError, match="x is not a safetensors file"):
        tensor_entries(lambda start, end: data[start:end], len(data), "x")


def test_a_file_that_was_cut_is_refused():
    data = save({"w": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError, match=f"expected {len(data)} bytes, found {len(data) - 1}"):
        tensor_entries(lambda start, end: data[start:end], len(data) - 1, "x")


def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((17 << 20).to_bytes(8, "little") + bytes(18 << 20))
    found, read = described(tmp_path)

    assert (found.tensors, read["model.safetensors"]) == ((), 16)
