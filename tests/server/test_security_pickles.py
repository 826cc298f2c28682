"""Pickles: known by their names and by how they begin, refused unless a namespace takes them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from deltahub.server.errors import Refusal
from deltahub.server.pickles import HEAD, looks_pickled, pickle_within, refuse_pickle, refuse_pickle_within
from deltahub.server.settings import Settings

pytestmark = pytest.mark.slow  # hundreds of pickles


def torch_file(*, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def array_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def zip_file(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "text")
    return file.getvalue()


@pytest.mark.parametrize(
    "path",
    [
        "adapter_model.bin.gz",
        "model.pt",
        "model.PTH",
        "data.pkl",
        "data.pickle",
        "epoch=1.ckpt",
        "forest.joblib",
        "data.pkl.gz",
        "model.pt.zip",
    ],
)
def test_pickles_are_known_by_their_names(path):
    assert "name ends in" in looks_pickled(path, b"")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_are_known_by_how_they_begin_whatever_they_are_called(protocol):
    assert looks_pickled("model.safetensors", pickle.dumps({"w": [1]}, protocol)[:HEAD])


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_known_by_how_they_begin(zipped):
    assert looks_pickled("model.safetensors", torch_file(zipped=zipped)[:HEAD])


def test_arrays_of_objects_are_pickles_and_arrays_of_numbers_are_not():
    assert looks_pickled("x.npy", array_file(np.array([{"a": 1}], dtype=object))[:HEAD])
    assert looks_pickled("x.npy", array_file(np.zeros(3))[:HEAD]) is None


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("adapter_model.safetensors", save({"w": np.zeros(3)})),
        ("README.md", b"# A card"),
        ("config.json", b"{}"),
        ("binary.txt", b"\x00\x01"),
        ("docs.zip", zip_file("data/readme.txt")),
        ("bin/notes.md", b""),
        ("model.pt.md", b"about model.pt"),
        ("empty", b""),
    ],
)
def test_other_files_are_not_mistaken_for_pickles(path, data):
    assert looks_pickled(path, data[:HEAD]) is None


def refused_content(path, data):
    """Whether a commit of a file is refused for its content."""
    try:
        refuse_pickle_within(Settings(), "acme", path, len(data), lambda start, end: data[start:end])
    except Refusal:
        return True
    return False


@pytest.mark.parametrize("data", [b"content", b"LFS content", b"\x00" * 99, b"GGUF\x03\x00", b"", bytes(range(7, 200))])
def test_a_bin_file_that_is_no_pickle_is_taken(data):
    assert looks_pickled("model.bin", data) is None
    assert not refused_content("model.bin", data)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [{"w": [1.5]}, print, 1])
def test_a_bin_file_that_is_a_pickle_is_refused(value, protocol):
    assert refused_content("pytorch_model.bin", pickle.dumps(value, protocol))


def test_a_bin_file_may_not_begin_to_import_something():
    torch_files = [torch_file(zipped=True), torch_file(zipped=False), gzip.compress(pickle.dumps(print))]
    for data in (*torch_files, b"cos\nsystem\n", b"cos\nsystem\n(S'id'\ntR\xff", b"(S'id'\nios\nsystem\n."):
        assert refused_content("pytorch_model.bin", data)
    assert not refused_content("notes.txt", b"cos\nsystem\n")


def test_an_empty_file_is_harmless_under_any_name():
    assert not refused_content("empty.pkl", b"")


def test_a_refusal_says_why_and_what_to_do():
    with pytest.raises(Refusal, match="safetensors") as caught:
        refuse_pickle(Settings(), "acme", "pytorch_model.pt", 9)
    assert caught.value.status == 403
    assert "--allow-pickle acme" in caught.value.message


@pytest.mark.parametrize(("allowed", "refused"), [(("acme",), False), (("*",), False), (("lab",), True), ((), True)])
def test_a_namespace_can_be_let_off(allowed, refused):
    settings = Settings(pickle_namespaces=allowed)
    if refused:
        with pytest.raises(Refusal):
            refuse_pickle(settings, "acme", "model.bin", 9, pickle.dumps(1))
    else:
        refuse_pickle(settings, "acme", "model.bin", 9, pickle.dumps(1))
        assert settings.allows_pickle("acme")


class Evil:
    def __reduce__(self):
        return (print, ("opened",))


def within(data: bytes) -> str | None:
    return pickle_within(len(data), lambda start, end: data[start:end])


def tar_file(data: bytes, mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        entry = tarfile.TarInfo("weights")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def zip_of(data: bytes, name: str = "weights") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first", bytes(600))
        archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    "wrap",
    [
        bytes,
        gzip.compress,
        bz2.compress,
        lzma.compress,
        zlib.compress,
        zip_of,
        tar_file,
        lambda it: tar_file(it, "w:gz"),
        lambda it: gzip.compress(b"") + bytes(8) + gzip.compress(it),
        lambda it: gzip.compress(it)[:-8] + bytes(8),
        lambda it: zlib.compress(it, wbits=9),
    ],
    ids=[
        "as it is",
        "gzip",
        "bz2",
        "xz",
        "zlib",
        "zip",
        "tar",
        "tar.gz",
        "second part",
        "wrong checksum",
        "small window",
    ],
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value",
    [Evil(), [Evil()], {"a": 1}, {"w": [1.5, (2, 10**30), {"x"}, "é" * 300]}],
    ids=["object", "list", "dict", "values"],
)
def test_a_pickle_is_known_by_its_content_whatever_it_is_called_and_wrapped_in(value, protocol, wrap):
    assert within(wrap(pickle.dumps(value, protocol)))


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'id'\ntR",
        b"(S'id'\nios\nsystem\n garbage",
        b"(cos\nsystem\nS'id'\no",
        b"N0cos\nsystem\n(S'id'\ntR.",
        b"N.\x80\x04\x95" + pickle.dumps(Evil(), 4)[3:],
        b"N0" * 100_001,
    ],
    ids=["no end", "inst", "obj", "after another value", "after another pickle", "very long"],
)
def test_a_file_that_starts_to_run_code_is_a_pickle(data):
    assert within(data)


def test_archives_are_known_by_the_names_and_the_objects_in_them():
    arrays = io.BytesIO()
    np.savez(arrays, numbers=np.zeros(3), objects=np.array([{"a": 1}], dtype=object))
    assert within(zip_of(b"", "archive/data.pkl"))
    assert within(arrays.getvalue())
    assert within(array_file(np.zeros(2, dtype=[("id", "i4"), ("what", "O")])))
    assert within(zip_of(b"text")[:-30]), "what cannot be looked into"
    assert within(b"\x04\x22\x4d\x18" + bytes(20))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"N. America has the most of them.\n",
        b"cats\ndogs\nboats\n",
        b"Format: https://www.debian.org\nUpstream-Name: a\nCopyright: 2026 somebody\nFiles: *\nLicense: GPL\n" * 9,
        b"import os\nfrom x import y\n",
        b"(a) first\n(b) second\n",
        bytes(4096),
        save({"w": np.zeros(3)}),
        array_file(np.zeros(2, dtype=[("O", "i4"), ("name", "S4")])),
        zip_of(b"text"),
        gzip.compress(b"text"),
        tar_file(b"text"),
        tar_file(b"text", "w:xz"),
    ],
    ids=[
        "empty",
        "prose",
        "lines",
        "copyright",
        "python",
        "list",
        "zeros",
        "safetensors",
        "array",
        "zip",
        "gzip",
        "tar",
        "xz",
    ],
)
def test_any_other_content_is_taken(data):
    assert within(data) is None


@pytest.mark.parametrize(
    "mark",
    ["28b52ffd", "502a4d18", "04224d18", "377abcaf271c", "526172211a0700", "1f9d90", "ff060000734e61507059"],
    ids=["zstd", "skipped frame", "lz4", "7z", "rar", "compress", "snappy"],
)
def test_files_compressed_in_an_uninspectable_format_are_refused(mark):
    data = bytes.fromhex(mark) + bytes(range(100))
    assert "cannot look into" in within(data)
    assert within(zip_of(data))


@pytest.mark.parametrize("ending", [".zst", ".br", ".7z", ".Z"])
def test_a_file_named_like_an_uninspectable_format_is_refused(ending):
    assert "cannot look into" in looks_pickled(f"weights{ending}", b"text")


def test_many_empty_members_before_the_content_are_refused():
    nothing = gzip.compress(b"", mtime=0)
    assert "hold nothing" in within(nothing * (2 + (1 << 20) // len(nothing)) + gzip.compress(b"text"))
