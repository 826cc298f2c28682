"""Pickles: known by their names and by how they begin, refused unless a namespace takes them."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from deltahub.server.pickles import HEAD, looks_pickled, refuse_pickle
from deltahub.server.refusals import Refusal
from deltahub.server.settings import Settings


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
        "pytorch_model.bin",
        "adapter_model.bin",
        "a/b/training_args.BIN",
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
def test_what_is_no_pickle_is_taken_for_none(path, data):
    assert looks_pickled(path, data[:HEAD]) is None


def test_a_refusal_says_why_and_what_to_do():
    with pytest.raises(Refusal, match="safetensors") as caught:
        refuse_pickle(Settings(), "acme", "pytorch_model.bin")
    assert caught.value.status == 403
    assert "--allow-pickle acme" in caught.value.message


@pytest.mark.parametrize(("allowed", "refused"), [(("acme",), False), (("*",), False), (("lab",), True), ((), True)])
def test_a_namespace_can_be_let_off(allowed, refused):
    settings = Settings(pickle_namespaces=allowed)
    if refused:
        with pytest.raises(Refusal):
            refuse_pickle(settings, "acme", "model.bin", pickle.dumps(1))
    else:
        refuse_pickle(settings, "acme", "model.bin", pickle.dumps(1))
        assert settings.allows_pickle("acme")
