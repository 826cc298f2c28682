"""Deltas are found by the backbone that they fit, from the headers of its files alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltahub.checkpoint.backbone_fit import SAME_STRUCTURE, backbone_folder, backbone_tensors, fit
from deltahub.checkpoint.backbone_record import (
    INCOMPATIBLE,
    OTHER_PRECISION,
    OTHER_QUANTISATION,
    RESIZED,
    Difference,
    Fingerprint,
    Leaf,
)
from deltahub.checkpoint.manifest import TensorEntry
from deltahub.checkpoint.quantised_weight import Quantisation, QuantisedWeight
from deltahub.errors import CheckpointError
from deltahub.registry.search.conditions import Query, Search
from deltahub.registry.search.index import Index
from deltahub.stores.base import object_key
from tests.checkpoints import LEAVES

SHAPES = {leaf.name: leaf.shape for leaf in LEAVES}
EXPECTED = Fingerprint(LEAVES)


def tensors(shapes, dtype="F32"):
    return {name: TensorEntry(name, dtype, shape) for name, shape in shapes.items()}


@pytest.fixture
def save(tmp_path):
    """Writes a backbone's folder, over several files if asked."""

    def saved(shapes, files=1, dtype=np.float32):
        folder = tmp_path / "backbone"
        folder.mkdir(exist_ok=True)
        names = sorted(shapes)
        for number in range(files):
            part = {name: np.zeros(shapes[name], dtype) for name in names[number::files]}
            save_file(part, folder / f"model-{number}.safetensors")
        return folder

    return saved


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (SHAPES, ""),
        ({**SHAPES, "head.weight": (2, 4)}, ""),
        ({f"bert.{name}": shape for name, shape in SHAPES.items()}, "; in the files under bert."),
        (
            {**{f"bert.{name}": shape for name, shape in SHAPES.items()}, "cls.weight": (2, 4)},
            "; in the files under bert.",
        ),
    ],
    ids=["same", "with a head", "inside a model with a head", "inside, and a head"],
)
def test_a_backbone_with_all_that_a_delta_leaves_alone_fits(found, said):
    assert fit(EXPECTED, tensors(found)) == Difference(
        SAME_STRUCTURE, f"the values are compared when it is loaded{said}"
    )


def test_a_delta_of_a_model_with_a_head_fits_the_model_without_it():
    leaves = tuple(Leaf(f"bert.{leaf.name}", leaf.dtype, leaf.shape, leaf.hash) for leaf in LEAVES)
    difference = fit(Fingerprint(leaves), tensors(SHAPES))
    assert (difference.level, difference.detail[-30:]) == (SAME_STRUCTURE, "; in the files not under bert.")


def test_another_precision_is_reported():
    difference = fit(EXPECTED, tensors(SHAPES, "BF16"))
    assert difference.level == OTHER_PRECISION
    assert "embed.weight is bfloat16, expected float32" in difference.detail


def test_resized_embeddings_are_distinguished_from_another_backbone():
    difference = fit(EXPECTED, tensors({**SHAPES, "embed.weight": (11, 4)}))
    assert difference == Difference(RESIZED, "embed.weight is [11, 4], expected [10, 4]")


@pytest.mark.parametrize(
    ("found", "detail"),
    [
        ({}, "missing embed.weight, layer.query.weight, layer.value.weight"),
        ({name: shape for name, shape in SHAPES.items() if "value" not in name}, "missing layer.value.weight"),
        ({**SHAPES, "layer.query.weight": (4, 5)}, "layer.query.weight is [4, 5], expected [4, 4]"),
        (
            {name.replace("layer", "block"): shape for name, shape in SHAPES.items()},
            "missing layer.query.weight, layer.value.weight",
        ),
        (
            {f"a.b.{name}": shape for name, shape in SHAPES.items()},
            "missing embed.weight, layer.query.weight, layer.value.weight",
        ),
    ],
    ids=["nothing", "one missing", "another width", "other names", "deeper"],
)
def test_any_other_backbone_does_not_fit_and_the_reason_is_given(found, detail):
    assert fit(EXPECTED, tensors(found)) == Difference(INCOMPATIBLE, detail)


NF4 = Quantisation("bitsandbytes nf4", 4, "bfloat16", "{}", ("weight", "weight.absmax"))
QUANTISED = Fingerprint(
    (
        Leaf("q.weight", "uint8", (8, 1), "1" * 32),
        Leaf("q.weight.absmax", "float32", (1,), "2" * 32),
        Leaf("q.bias", "float32", (4,), "3" * 32),
    ),
    3,
    (QuantisedWeight("q.weight", (4, 4), NF4),),
)
DENSE = Fingerprint((Leaf("q.weight", "float32", (4, 4), "4" * 32), Leaf("q.bias", "float32", (4,), "3" * 32)))
DENSE_FILES = tensors({"q.weight": (4, 4), "q.bias": (4,)})
QUANTISED_FILES = {**tensors({"q.weight": (8, 1)}, "U8"), **tensors({"q.weight.absmax": (1,), "q.bias": (4,)})}


def test_a_dense_backbone_fits_a_delta_of_a_quantised_one_and_the_other_way_round():
    assert fit(QUANTISED, QUANTISED_FILES).level == SAME_STRUCTURE
    assert fit(DENSE, DENSE_FILES).level == SAME_STRUCTURE
    on_dense, on_quantised = fit(QUANTISED, DENSE_FILES), fit(DENSE, QUANTISED_FILES)
    assert on_dense.level == on_quantised.level == OTHER_QUANTISATION
    assert "recorded on bitsandbytes nf4, and this one is dense" in on_dense.detail
    assert "recorded on dense weights, and this one is quantised" in on_quantised.detail
    assert fit(QUANTISED, tensors({"q.weight": (4, 5), "q.bias": (4,)})).level == INCOMPATIBLE
    assert fit(DENSE, QUANTISED_FILES | tensors({"q.bias": (5,)})).level == INCOMPATIBLE


def test_a_delta_that_says_nothing_of_its_backbone_fits_none():
    assert fit(Fingerprint(()), tensors(SHAPES)).level == INCOMPATIBLE


def test_a_tied_matrix_need_not_be_there_twice_but_a_vector_that_is_equal_by_chance_must():
    def fingerprint(shape):
        return Fingerprint(
            (Leaf("embed.weight", "float32", shape, "0" * 32), Leaf("head.weight", "float32", shape, "0" * 32))
        )

    assert fit(fingerprint((10, 4)), tensors({"embed.weight": (10, 4)})).level == SAME_STRUCTURE
    assert fit(fingerprint((10,)), tensors({"embed.weight": (10,)})).level == INCOMPATIBLE
    both = tensors({"embed.weight": (10, 4), "head.weight": (9, 4)})
    assert fit(fingerprint((10, 4)), both).level == RESIZED


def test_a_backbone_may_be_in_several_files(save):
    assert backbone_tensors(save(SHAPES, files=2)) == tensors(SHAPES)


def test_a_folder_without_a_backbone_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors file; expected the folder of a backbone"):
        backbone_tensors(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        backbone_tensors(tmp_path)


def test_a_backbone_may_be_a_model_in_the_cache_of_hugging_face(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--acme--bert", "0" * 40
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    assert backbone_folder("acme/bert") == repo / "snapshots" / commit
    assert backbone_folder(str(tmp_path)) == tmp_path
    for missing in ("acme/other", "./nowhere", "a/b/c/d"):
        with pytest.raises(CheckpointError, match="is neither the folder of a backbone nor a model in the cache"):
            backbone_folder(missing)


@pytest.fixture
def index(registry, publish, tmp_path) -> Index:
    """Of three deltas of one backbone."""
    for number in range(3):
        publish(registry, f"me/d{number}", value=number)
    return Index(tmp_path / "index.sqlite3", registry)


def test_a_search_by_backbone_counts_and_pages_fitting_deltas(index):
    lines, total = index.search(Search(Query(sort="name"), limit=1, offset=1, backbone=tensors(SHAPES)))
    assert ([line.name for line in lines], total) == (["me/d1"], 3)
    assert lines[0].fit.level == SAME_STRUCTURE
    assert index.search(Search(Query("d2"), backbone=tensors(SHAPES)))[1] == 1
    assert index.search(Search(backbone=tensors({"other": (1,)}))) == ([], 0)


def test_those_that_do_not_fit_are_listed_with_the_reason_when_asked_for(index):
    lines, total = index.search(
        Search(Query(near=True, sort="name"), backbone=tensors({**SHAPES, "embed.weight": (11, 4)}))
    )
    assert total == 3
    assert {(line.fit.level, line.fit.detail) for line in lines} == {
        (RESIZED, "embed.weight is [11, 4], expected [10, 4]")
    }


def test_a_search_by_backbone_reads_each_record_once_and_no_manifest(index, registry, monkeypatch):
    index.search(Search())
    read, store_read = [], registry.store.read
    monkeypatch.setattr(registry.store, "read", lambda key: read.append(key) or store_read(key))
    assert index.search(Search(backbone=tensors(SHAPES)))[1] == 3
    record = registry.document("me/d0").versions["v1"].summary["backbone_record"]
    assert [key for key in read if key.startswith("objects/")] == [object_key(record)]


def test_a_record_that_is_gone_fits_nothing_and_the_search_goes_on(index, registry):
    record = registry.document("me/d0").versions["v1"].summary["backbone_record"]
    registry.store.delete(object_key(record))
    assert index.search(Search(backbone=tensors(SHAPES))) == ([], 0)
    assert index.search(Search(Query(near=True), backbone=tensors(SHAPES)))[1] == 3


def test_a_delta_whose_document_does_not_say_its_record_is_found_all_the_same(index, registry):
    def forget(document):
        entry = document.versions["v1"]
        summary = {key: value for key, value in entry.summary.items() if key != "backbone_record"}
        return replace(document, versions={"v1": replace(entry, summary=summary)})

    assert "backbone_record" not in registry.update("me/d1", forget).versions["v1"].summary
    assert index.search(Search(backbone=tensors(SHAPES)))[1] == 3
