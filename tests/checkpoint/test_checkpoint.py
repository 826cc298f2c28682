"""A checkpoint folder is whole and as it was saved, or it is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.checkpoint import BACKBONE, CARD, CONFIG, WEIGHTS, describe, is_checkpoint, read, read_document
from deltahub.checkpoint.manifest import TensorEntry
from deltahub.checkpoint.safetensors_header import tensor_table
from deltahub.errors import CheckpointError, ConfigError, DeltaHubError, IntegrityError, StorageError
from tests import checkpoints
from tests.checkpoints import content_of, save_checkpoint
from tests.faults import FORBIDDEN, FULL, INTERRUPT


def test_all_files_of_a_delta_have_the_same_readers(checkpoint_folder):
    assert len({(checkpoint_folder / name).stat().st_mode for name in (CONFIG, WEIGHTS, BACKBONE, CARD)}) == 1


def test_saved_documents_are_read_back(checkpoint_folder):
    found = read(checkpoint_folder)

    assert found.document["lora_r"] == 1
    assert found.fingerprint == checkpoints.BACKBONE
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        "layer.query.deltas.lora_A": [[0.5] * 4],
        "layer.query.deltas.lora_B": [[0.5]] * 4,
        "classifier.bias": [0.0, 0.0],
    }


def test_equal_content_saved_in_two_places_has_one_digest(new_checkpoint):
    assert describe(new_checkpoint()).digest == describe(new_checkpoint()).digest
    assert describe(new_checkpoint()).digest != describe(new_checkpoint(value=0.25)).digest


def test_a_manifest_counts_the_delta_apart_from_the_backbone_s_own_tensors(checkpoint_folder):
    manifest = describe(checkpoint_folder)

    assert manifest.parameters == {"total": 10, "delta": 8}
    assert manifest.tensors[0] == TensorEntry("classifier.bias", "F32", (2,))


def test_test_results_become_metrics(new_checkpoint):
    facts = {"test_tasks": ["nli"], "test_datasets": ["mnli"], "test_result": {"f1": 0.5}, "test_performance": 0.25}

    assert describe(new_checkpoint(metadata=facts)).metrics == (
        {"task_type": "nli", "dataset_name": "mnli", "metric_type": "f1", "metric_value": 0.5},
        {"task_type": "nli", "dataset_name": "mnli", "metric_type": "performance", "metric_value": 0.25},
    )


def test_the_folder_may_hold_files_of_others(checkpoint_folder):
    expected = describe(checkpoint_folder).digest
    (checkpoint_folder / "pytorch_model.bin").write_bytes(b"other")

    assert describe(checkpoint_folder).digest == expected


def test_saving_again_replaces_the_delta_and_leaves_other_files_alone(tmp_path):
    folder = save_checkpoint(tmp_path / "delta")
    (folder / "trainer_state.json").write_bytes(b"{}")
    save_checkpoint(folder, value=0.25)

    assert read(folder).tensors["layer.query.deltas.lora_A"].tolist() == [[0.25] * 4]
    assert sorted(path.name for path in folder.iterdir()) == [CARD, BACKBONE, WEIGHTS, CONFIG, "trainer_state.json"]


def test_an_empty_folder_is_no_delta_and_the_error_says_what_to_point_to(tmp_path):
    assert not is_checkpoint(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"holds no delta: delta_config\.json is missing\. Expected a folder that save_finetuned wrote",
    ):
        describe(tmp_path)


@pytest.mark.parametrize("open_it", [read, describe])
@pytest.mark.parametrize("name", [WEIGHTS, BACKBONE])
def test_a_missing_file_is_named_with_the_way_out(checkpoint_folder, open_it, name):
    (checkpoint_folder / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        open_it(checkpoint_folder)
    assert str(caught.value) == (
        f"{checkpoint_folder / name} is missing, though {CONFIG} lists it. Fetch or save the delta again."
    )


@pytest.mark.parametrize("open_it", [read, describe])
@pytest.mark.parametrize("name", [WEIGHTS, BACKBONE])
def test_every_flipped_byte_and_every_cut_is_noticed(checkpoint_folder, open_it, name):
    path = checkpoint_folder / name
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(IntegrityError, match=r"expected sha256:.* found sha256:.*Fetch or save the delta again"):
            open_it(checkpoint_folder)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(IntegrityError, match=rf"expected {len(data)} bytes, found {size} bytes"):
            open_it(checkpoint_folder)


def test_a_damaged_config_is_refused_or_still_a_whole_config(checkpoint_folder):
    path = checkpoint_folder / CONFIG
    data = path.read_bytes()
    damaged = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(len(data))]
    for candidate in [*damaged, *(data[:size] for size in range(len(data) - 2))]:
        path.write_bytes(candidate)
        try:
            document = describe(checkpoint_folder).config
        except DeltaHubError:
            continue
        assert len(candidate) == len(data)
        assert document["delta_type"] in ("lora", "adapter", "bitfit")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"3", b"null", b'"lora"', b"{", b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}']
)
def test_a_config_that_is_no_json_object_is_a_checkpoint_error(checkpoint_folder, data):
    (checkpoint_folder / CONFIG).write_bytes(data)
    with pytest.raises(CheckpointError, match="Restore it, or save"):
        read_document(checkpoint_folder)


@pytest.mark.parametrize("lists", [None, {}, {BACKBONE: {"sha256": "0" * 64, "size": 1}}])
@pytest.mark.parametrize("open_it", [read, describe])
def test_a_config_that_does_not_vouch_for_the_weights_is_refused(checkpoint_folder, open_it, lists):
    document = json.loads((checkpoint_folder / CONFIG).read_bytes())
    document.pop("files")
    (checkpoint_folder / CONFIG).write_text(json.dumps(document | ({} if lists is None else {"files": lists})))
    with pytest.raises(CheckpointError, match=r"lists no .*delta\.safetensors.*Save the delta again"):
        open_it(checkpoint_folder)


def test_a_config_can_not_reach_out_of_its_folder(checkpoint_folder, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    document = json.loads((checkpoint_folder / CONFIG).read_bytes())
    document["files"]["../secret"] = {"sha256": "0" * 64, "size": 6}
    (checkpoint_folder / CONFIG).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"\.\./secret"):
        describe(checkpoint_folder)


headers = st.dictionaries(
    st.text(max_size=5) | st.just("__metadata__"),
    st.none()
    | st.integers()
    | st.text(max_size=3)
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "X", ""]),
            "shape": st.lists(st.integers(-1, 2**63), max_size=3),
            "data_offsets": st.lists(st.integers(-1, 64), min_size=1, max_size=3),
        }
    ),
    max_size=3,
).map(lambda header: json.dumps(header).encode())
files = st.binary(max_size=40) | st.builds(
    lambda size, header, body: struct.pack("<Q", len(header) if size is None else size) + header + body,
    st.none() | st.integers(0, 2**64 - 1),
    headers | st.binary(max_size=20),
    st.binary(max_size=16),
)


@given(files)
@example(b"")
@example(struct.pack("<Q", 100_000) + b"[" * 100_000)
@example(struct.pack("<Q", 2**63))
def test_any_header_is_read_or_a_checkpoint_error(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        path.write_bytes(data)
        try:
            table = tensor_table(path)
        except CheckpointError:
            return
        assert all(isinstance(entry, TensorEntry) for entry in table)


def test_the_table_of_tensors_is_sorted(tmp_path):
    save_file({"b": np.zeros((2, 3), np.float16), "a": np.zeros((), np.int64)}, tmp_path / "x")

    assert tensor_table(tmp_path / "x") == (TensorEntry("a", "I64", ()), TensorEntry("b", "F16", (2, 3)))


@pytest.mark.parametrize(
    "save_function",
    [lambda _, path: path.write_bytes(b"\x80\x04pickle"), lambda _, path: None, lambda _, path: path.mkdir()],
    ids=["pickle", "nothing", "folder"],
)
def test_a_save_function_that_writes_something_else_is_refused_and_the_old_delta_stays(
    checkpoint_folder, save_function
):
    before = content_of(checkpoint_folder)
    with pytest.raises(CheckpointError):
        checkpoint.write(checkpoint_folder, checkpoints.DOCUMENT, {}, checkpoints.BACKBONE, "", save_function)
    assert content_of(checkpoint_folder) == before


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("F8_E4M3", [4], 4), ("F4", [2, 4], 4), ("X9", [4], 4), ("F32", [0, 4], 0), ("F32", [0, 2**40], 0)],
)
def test_tensors_that_no_delta_is_computed_in_are_neither_saved_nor_read(checkpoint_folder, dtype, shape, size):
    header = json.dumps({"layer.query.deltas.lora_A": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}})
    data = struct.pack("<Q", len(header)) + header.encode() + bytes(size)
    document = read_document(checkpoint_folder)
    with pytest.raises(CheckpointError, match="lora_A"):
        checkpoint.write(
            checkpoint_folder, document, {}, checkpoints.BACKBONE, "", lambda _, path: path.write_bytes(data)
        )
    (checkpoint_folder / WEIGHTS).write_bytes(data)
    document["files"][WEIGHTS] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (checkpoint_folder / CONFIG).write_text(json.dumps(document))
    for open_it in (read, describe):
        with pytest.raises(CheckpointError, match="lora_A"):
            open_it(checkpoint_folder)


@pytest.mark.parametrize("open_it", [read, describe])
def test_a_file_without_tensors_is_refused(checkpoint_folder, open_it):
    (checkpoint_folder / WEIGHTS).write_bytes(data := struct.pack("<Q", 2) + b"{}")
    document = read_document(checkpoint_folder)
    document["files"][WEIGHTS] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (checkpoint_folder / CONFIG).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="holds no tensor"):
        open_it(checkpoint_folder)


def test_the_size_of_a_file_is_a_whole_number(checkpoint_folder):
    document = read_document(checkpoint_folder)
    document["files"][WEIGHTS]["size"] += 0.0
    (checkpoint_folder / CONFIG).write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"size must be of type integer, got \d+\.0"):
        describe(checkpoint_folder)


@pytest.mark.parametrize("open_it", [read, describe])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, BACKBONE])
def test_a_file_of_another_size_is_refused_before_it_is_read(checkpoint_folder, open_it, name):
    with (checkpoint_folder / name).open("r+b") as file:
        file.truncate(1 << 36)
    with pytest.raises((IntegrityError, CheckpointError), match=str(1 << 36)):
        open_it(checkpoint_folder)


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, FORBIDDEN, INTERRUPT], ids=["full", "forbidden", "interrupted"])
def test_a_save_that_fails_at_any_step_leaves_the_old_delta_or_the_new_one(tmp_path, faults, error):
    before = describe(save_checkpoint(tmp_path / "old")).digest
    after = describe(save_checkpoint(tmp_path / "new", value=0.25)).digest
    steps = faults.count(lambda: save_checkpoint(tmp_path / "new", value=0.25))
    for case, step, failure in faults.each(steps, error):
        folder = save_checkpoint(tmp_path / case)
        with faults.at(step, failure):
            try:
                save_checkpoint(folder, value=0.25)
            except (StorageError, KeyboardInterrupt):
                assert describe(folder).digest in (before, after), case
            else:
                assert describe(folder).digest == after, case
        assert sorted(content_of(folder)) == [CARD, BACKBONE, WEIGHTS, CONFIG]
        assert describe(save_checkpoint(folder, value=0.25)).digest == after


def test_a_first_save_that_fails_leaves_no_delta_that_could_be_read(tmp_path, faults):
    steps = faults.count(lambda: save_checkpoint(tmp_path / "count"))
    for case, step, error in faults.each(steps, FULL):
        with faults.at(step, error):
            try:
                save_checkpoint(tmp_path / case)
            except StorageError as failure:
                found = str(failure)
            else:
                found = "No space was needed there"
        assert "No space" in found, case
        if is_checkpoint(tmp_path / case):
            read(tmp_path / case)
        else:
            assert content_of(tmp_path / case) == {}


def test_a_card_that_is_a_link_out_of_the_folder_is_not_published(checkpoint_folder, tmp_path):
    (tmp_path / "secret").write_text("mine")
    (checkpoint_folder / "README.md").unlink()
    (checkpoint_folder / "README.md").symlink_to(tmp_path / "secret")

    with pytest.raises(CheckpointError, match=r"README\.md is a link to .*secret, outside the folder"):
        checkpoint.describe(checkpoint_folder)


def test_damage_by_an_interrupted_save_says_where_the_old_files_are(checkpoint_folder):
    before = checkpoint_folder / ".deltahub-0123456789abcdef0123456789abcdef" / "replaced"
    before.mkdir(parents=True)
    (checkpoint_folder / "delta.safetensors").write_bytes(b"half")

    with pytest.raises(IntegrityError) as caught:
        checkpoint.read(checkpoint_folder)

    assert f"are in {before}." in str(caught.value)
