"""Whatever is read, however strange, is read as it was written or refused by an error of ours."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.manifest import FileEntry, Manifest, TensorEntry
from deltahub.checkpoint.safetensors_header import tensor_entries
from deltahub.errors import CheckpointError, DeltaHubError, IntegrityError, ReferenceSyntaxError
from deltahub.files.documents import canonical_json, with_checksum
from deltahub.reference import Digest, Reference, check_alias, check_tag
from deltahub.registry.document import ReferenceDocument
from deltahub.registry.entries import Version
from deltahub.registry.gc_state import STATE, State, read_state, write_state
from deltahub.stores.memory import MemoryStore
from tests.checkpoints import save_checkpoint

pytestmark = pytest.mark.slow  # many examples of each

EXAMPLES = int(os.environ.get("DELTAHUB_EXAMPLES", "40"))  # of each
MANY = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
texts = st.text(max_size=30)
bits = st.integers(0, (1 << 64) - 1)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
hexes = st.integers(0, (1 << 256) - 1).map("{:064x}".format)
digests = hexes.map(Digest.of_hex)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}", fullmatch=True)
times = st.datetimes().map(lambda time: f"{time:%Y-%m-%dT%H:%M:%SZ}")
kinds = st.sampled_from(["F32", "F16", "BF16", "I64", "U8", "BOOL", "F64", 3, None])
sizes = st.integers(-2, 5) | st.integers(1 << 62, 1 << 65) | st.floats(allow_nan=False, allow_infinity=False) | texts


@MANY
@given(texts | st.from_regex(r"[\w.:/@~-]{0,20}"))
def test_a_reference_is_read_as_it_is_written_or_refused(text):
    with contextlib.suppress(ReferenceSyntaxError):
        found = Reference.parse(text)
        assert Reference.parse(str(found)) == found


@MANY
@given(texts, st.sampled_from([check_alias, check_tag]))
def test_an_alias_or_a_tag_is_taken_as_it_is_or_refused(text, check):
    with contextlib.suppress(ReferenceSyntaxError):
        assert check(text) == text


@st.composite
def documents(draw: st.DrawFn) -> ReferenceDocument:
    """What any number of changes may lead to."""
    document = ReferenceDocument("acme/ner")
    for _ in range(draw(st.integers(1, 4))):
        time, author = draw(times), draw(texts)
        version = Version(
            draw(digests), time, author, draw(texts), (), draw(st.dictionaries(texts, values, max_size=2))
        )
        document, name = document.with_version(version)
        document = document.with_tags(name, draw(st.lists(names, max_size=2)), (), time, author)
        if draw(st.booleans()):
            document = document.with_alias(draw(names), name, time, author)
        elif not document.aliases_of(name):
            document = document.without_version(name, time, author, draw(texts))
    return document


@MANY
@given(documents())
def test_a_reference_document_is_read_as_it_was_written(document):
    assert ReferenceDocument.from_bytes(document.to_bytes()) == document


@MANY
@given(documents(), st.data())
def test_no_reference_document_with_any_other_byte_is_read(document, data):
    written = bytearray(document.to_bytes())
    place = data.draw(st.integers(0, len(written) - 1))
    written[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IntegrityError):
        ReferenceDocument.from_bytes(bytes(written))


@MANY
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_no_other_bytes_are_a_reference_document(data):
    with pytest.raises(DeltaHubError):
        ReferenceDocument.from_bytes(data)


@MANY
@given(
    documents(),
    st.sampled_from(["versions", "aliases", "log", "removed", "name", "moved_to", "schema_version"]),
    values,
)
def test_a_reference_document_with_anything_in_it_is_read_or_refused(document, key, value):
    data = with_checksum({**json.loads(document.to_bytes()), key: value})
    with contextlib.suppress(DeltaHubError):
        assert ReferenceDocument.from_bytes(data).to_bytes() == data


@MANY
@given(st.dictionaries(hexes, times, max_size=3), st.dictionaries(hexes, times, max_size=3), texts)
def test_the_state_of_a_collection_is_read_as_it_was_written(condemned, sweeping, sweeper):
    store, state = MemoryStore(), State(3, condemned, sweeping, sweeper)
    write_state(store, state, None)
    assert read_state(store)[0] == state


@MANY
@given(
    st.binary(max_size=60) | values.map(lambda value: with_checksum(value if isinstance(value, dict) else {"x": value}))
)
def test_anything_else_is_no_state_of_a_collection(data):
    store = MemoryStore()
    store.swap(STATE, data, None)
    with pytest.raises(IntegrityError):
        read_state(store)


manifests = st.builds(
    Manifest,
    config=st.dictionaries(texts, values, max_size=3),
    files=st.lists(st.builds(FileEntry, names, hexes, st.integers(0, 1 << 60)), max_size=3).map(tuple),
    tensors=st.lists(
        st.builds(TensorEntry, texts, st.just("F32"), st.lists(st.integers(0, 9)).map(tuple)), max_size=3
    ).map(tuple),
    parameters=st.fixed_dictionaries({"total": st.integers(0, 99), "delta": st.integers(0, 99)}),
)


@MANY
@given(manifests)
def test_a_manifest_is_read_as_it_was_written_or_refused(manifest):
    with contextlib.suppress(CheckpointError):
        assert Manifest.from_bytes(manifest.to_bytes(), manifest.digest) == manifest


@MANY
@given(manifests, st.sampled_from(["config", "files", "tensors", "parameters", "kind", "metrics", "more"]), values)
def test_a_manifest_with_anything_in_it_is_read_or_refused(manifest, key, value):
    data = canonical_json({**json.loads(manifest.to_bytes()), key: value})
    with contextlib.suppress(CheckpointError):
        Manifest.from_bytes(data, Digest.of(data))


@MANY
@given(st.binary(max_size=60))
def test_no_other_bytes_are_a_manifest(data):
    with pytest.raises(CheckpointError):
        Manifest.from_bytes(data, Digest.of(data))


def entries(data: bytes) -> tuple[TensorEntry, ...]:
    return tensor_entries(lambda start, end: data[start:end], len(data), "x")


def require_same(data: bytes) -> None:
    """What is taken for a file of tensors is one for the library too, with the same tensors."""
    try:
        found = entries(data)
    except CheckpointError:
        return
    assert {entry.name: entry.shape for entry in found} == {
        name: tuple(entry["shape"]) for name, entry in safetensors.deserialize(data)
    }


tensors = st.fixed_dictionaries(
    {
        "dtype": kinds,
        "shape": st.lists(sizes, max_size=3) | values,
        "data_offsets": st.lists(sizes, max_size=3) | values,
    }
)


@MANY
@given(st.dictionaries(texts, tensors | values, max_size=3), st.integers(-3, 40), st.binary(max_size=40))
def test_a_false_header_is_refused(header, more, body):
    data = json.dumps(header).encode()
    require_same(max(len(data) + more, 0).to_bytes(8, "little") + data + body)
    require_same(len(data).to_bytes(8, "little") + data + body)


@MANY
@given(st.lists(st.tuples(kinds, st.lists(st.integers(0, 3), max_size=2), st.integers(-1, 1)), max_size=3), st.data())
def test_a_tensor_that_is_longer_or_shorter_than_it_says_is_refused(tensors, data):
    header, position = {}, 0
    for number, (dtype, shape, more) in enumerate(tensors):
        last = position + max(4 * math.prod(shape) + more, 0)
        header[f"{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, last]}
        position = last
    text = json.dumps(header).encode()
    require_same(len(text).to_bytes(8, "little") + text + bytes(position))


@MANY
@given(st.integers(0, 63), st.integers(0, 1 << 30))
def test_a_false_length_is_refused_before_reading_that_much(bit, more):
    data = (1 << bit | more).to_bytes(8, "little") + b"{}"
    reads: list[int] = []

    def read(start: int, end: int) -> bytes:
        reads.append(end - start)
        return data[start:end]

    with contextlib.suppress(CheckpointError):
        tensor_entries(read, len(data), "x")
    assert max(reads) <= len(data)


def test_a_duplicate_name_in_a_header_is_refused():
    one = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    for header in (f"{{{one},{one}}}", f'{{"a":{{}},{one}}}'):
        with pytest.raises(CheckpointError):
            entries(len(header).to_bytes(8, "little") + header.encode() + b"x")


@MANY
@given(data=st.data())
def test_a_checkpoint_with_any_changed_byte_is_read_or_refused(tmp_path, data):
    folder = tmp_path / "checkpoint"
    if not folder.exists():
        save_checkpoint(folder)
    path: Path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    path.write_bytes(
        whole[:place] if cut else whole[:place] + data.draw(st.binary(min_size=1, max_size=3)) + whole[place + 1 :]
    )
    try:
        checkpoint.describe(folder)
    except DeltaHubError:
        pass
    finally:
        path.write_bytes(whole)
    checkpoint.describe(folder)
