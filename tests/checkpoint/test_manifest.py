"""A manifest is the identity of a delta: equal content gives equal bytes, for ever."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from deltahub.errors import CheckpointError, DeltaHubError, IntegrityError
from deltahub.files.documents import canonical_json
from deltahub.reference import Digest
from tests.checkpoints import save_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden/manifest.v1.json"
GOLDEN_DIGEST = "sha256:ceedf236746ffa6c92f67138436bf53dcce61c850f78ae673a852571cea03509"
WRITTEN_DIGEST = (
    "sha256:9f23d961ccf9ec774b8d7a5f7a8677a827c2b07d89fa427d2096f74d48886258"  # with a backbone record of version 2
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
hexes = st.text("0123456789abcdef", min_size=64, max_size=64)
manifests = st.builds(
    Manifest,
    config=st.dictionaries(texts, values, max_size=3).map(lambda config: {**config, "delta_type": "lora"}),
    files=st.lists(
        st.builds(
            FileEntry,
            path=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True),
            sha256=hexes,
            size=st.integers(0),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    tensors=st.lists(
        st.builds(TensorEntry, name=texts, dtype=texts, shape=st.lists(st.integers(0), max_size=3).map(tuple)),
        max_size=3,
    ).map(tuple),
    parameters=st.fixed_dictionaries({"total": st.integers(0), "delta": st.integers(0)}),
    metrics=st.lists(
        st.fixed_dictionaries({"metric_type": texts, "metric_value": st.integers() | texts}), max_size=2
    ).map(tuple),
)


@given(manifests)
def test_every_manifest_is_read_back_as_it_was_written(manifest):
    assert Manifest.from_bytes(manifest.to_bytes(), manifest.digest) == manifest


@given(manifests, st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_keys(manifest, random):
    keys = list(manifest.config)
    random.shuffle(keys)
    twin = dataclasses.replace(manifest, config={key: manifest.config[key] for key in keys})

    assert twin.digest == manifest.digest


@given(manifests, manifests)
def test_only_equal_manifests_have_equal_digests(one, other):
    same = json.dumps(dataclasses.asdict(one), sort_keys=True) == json.dumps(dataclasses.asdict(other), sort_keys=True)

    assert (one.digest == other.digest) == same


def test_a_checkpoint_has_the_golden_manifest_to_the_last_byte(tmp_path):
    facts = {"train_tasks": ["sst2"], "test_result": {"accuracy": 0.5}, "tags": ["task=sst2"]}
    origin = {
        "backbone_revision": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
        "parents": [{"relation": "resumed", "digest": f"sha256:{'3' * 64}", "name": "team:acme/sst2@v3"}],
        "transformers_version": "5.23.0",
        "torch_version": "2.13.0",
    }
    folder = save_checkpoint(tmp_path / "delta", metadata=facts, **origin)
    manifest = checkpoint.describe(folder)

    assert manifest.to_bytes() == (GOLDEN.parent / "manifest.v1.backbone.v2.json").read_bytes()
    assert manifest.digest == WRITTEN_DIGEST
    assert (folder / "delta_config.json").read_bytes() == (
        GOLDEN.parent / "delta_config.v1.backbone.v2.json"
    ).read_bytes()


def test_the_golden_manifest_is_still_read():
    manifest = Manifest.from_bytes(GOLDEN.read_bytes(), GOLDEN_DIGEST)

    assert manifest.size == 10 + 345 + 280 + 1021
    assert [entry.path for entry in manifest.files] == [
        "README.md",
        "backbone.json",
        "delta.safetensors",
        "delta_config.json",
    ]
    assert manifest.tensors[1] == TensorEntry("layer.query.deltas.lora_A", "F32", (1, 4))
    assert manifest.parameters == {"total": 10, "delta": 8}
    assert manifest.metrics == ({"task_type": "sst2", "metric_type": "accuracy", "metric_value": 0.5},)


def test_another_digest_is_refused_with_both_and_the_way_out():
    with pytest.raises(IntegrityError) as caught:
        Manifest.from_bytes(GOLDEN.read_bytes(), f"sha256:{'0' * 64}")
    assert str(caught.value) == (
        f"A manifest is damaged: expected sha256:{'0' * 64}, found {GOLDEN_DIGEST}. Run `deltahub verify` on its registry."
    )


def test_every_flipped_byte_is_noticed():
    data = GOLDEN.read_bytes()
    for place in range(len(data)):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(IntegrityError):
            Manifest.from_bytes(damaged, GOLDEN_DIGEST)


def read(data: bytes) -> Manifest:
    return Manifest.from_bytes(data, Digest.of(data))


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"schema_version": 2}, "schema_version must be exactly 1, got 2"),
        ({"kind": "zoo"}, "kind must be one of ['delta', 'files'], got 'zoo'"),
        ({"files": []}, "files"),
        ({"config": {}}, "config lacks 'delta_type'"),
        ({"more": 1}, "must not contain {'more'}"),
        ({"parameters": {"total": -1, "delta": 0}}, "parameters.total must be at least 0, got -1"),
        *(
            ({"files": [{"path": path, "sha256": "0" * 64, "size": 1}]}, "files[0].path")
            for path in ("../x", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "a\n", "", "\u0430", "C:x")
        ),
        ({"files": [{"path": "a", "sha256": f"{'0' * 64}\n", "size": 1}]}, "files[0].sha256"),
        ({"files": [{"path": "a", "sha256": "0" * 64, "size": "1"}]}, "files[0].size"),
    ],
)
def test_a_manifest_that_this_version_cannot_read_is_refused_and_asks_for_an_update(change, clause):
    document = {**json.loads(GOLDEN.read_bytes()), **change}
    with pytest.raises(CheckpointError) as caught:
        read(canonical_json(document))
    assert clause in str(caught.value)
    assert str(caught.value).endswith("Update deltahub.")


@given(st.binary(max_size=40) | values.map(lambda value: json.dumps(value).encode()))
def test_garbage_under_its_own_digest_is_a_checkpoint_error(data):
    with pytest.raises(CheckpointError):
        read(data)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"NaN", b""])
def test_hostile_json_is_a_checkpoint_error(data):
    with pytest.raises(DeltaHubError):
        read(data)


def test_canonical_json_is_sorted_tight_and_refuses_what_json_cannot_hold():
    assert canonical_json({"b": [1, 2.5], "a": "\u00e9"}) == '{"a":"\u00e9","b":[1,2.5]}'.encode()
    with pytest.raises(ValueError, match="Out of range float values"):
        canonical_json(float("nan"))


def test_a_manifest_is_held_against_its_schema_once_and_against_its_digest_each_time(tmp_path, monkeypatch):
    data = checkpoint.describe(save_checkpoint(tmp_path / "ckpt", value=0.125)).to_bytes()
    checked = []
    monkeypatch.setattr("deltahub.files.documents.problem", lambda document, _: checked.append(document))
    first = Manifest.from_bytes(data, Digest.of(data))
    assert Manifest.from_bytes(bytes(bytearray(data)), Digest.of(data)) == first
    assert len(checked) == 1
    with pytest.raises(IntegrityError):
        Manifest.from_bytes(data + b" ", Digest.of(data))
