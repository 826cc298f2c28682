"""Deltas are found by the backbone that they fit, from the headers of its files alone."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from deltahub.backbone import Fingerprint, Leaf
from deltahub.errors import CheckpointError
from deltahub.fitting import backbone_shapes, fits
from deltahub.registry.query import Query
from deltahub.stores.base import object_key
from tests.checkpoints import LEAVES

SHAPES = {leaf.name: leaf.shape for leaf in LEAVES}
EXPECTED = Fingerprint(LEAVES)


@pytest.fixture
def save(tmp_path):
    """Writes a backbone's folder, over several files if asked."""

    def saved(shapes, files=1):
        folder = tmp_path / "backbone"
        folder.mkdir(exist_ok=True)
        names = sorted(shapes)
        for number in range(files):
            part = {name: np.zeros(shapes[name], np.float16) for name in names[number::files]}
            save_file(part, folder / f"model-{number}.safetensors")
        return folder

    return saved


@pytest.mark.parametrize(
    "found",
    [
        SHAPES,
        {**SHAPES, "head.weight": (2, 4)},
        {f"bert.{name}": shape for name, shape in SHAPES.items()},
        {**{f"bert.{name}": shape for name, shape in SHAPES.items()}, "cls.weight": (2, 4)},
    ],
    ids=["same", "with a head", "inside a model with a head", "inside, and a head"],
)
def test_a_backbone_with_all_that_a_delta_leaves_alone_fits(found):
    assert fits(EXPECTED, found)


def test_a_delta_of_a_model_with_a_head_fits_the_model_without_it():
    leaves = tuple(Leaf(f"bert.{leaf.name}", leaf.dtype, leaf.shape, leaf.hash) for leaf in LEAVES)
    assert fits(Fingerprint(leaves), SHAPES)


@pytest.mark.parametrize(
    "found",
    [
        {},
        {name: shape for name, shape in SHAPES.items() if "value" not in name},
        {**SHAPES, "embed.weight": (11, 4)},
        {name.replace("layer", "block"): shape for name, shape in SHAPES.items()},
        {f"a.b.{name}": shape for name, shape in SHAPES.items()},
    ],
    ids=["nothing", "one missing", "one resized", "other names", "deeper"],
)
def test_any_other_backbone_does_not(found):
    assert not fits(EXPECTED, found)


def test_a_tied_matrix_need_not_be_there_twice_but_a_vector_that_is_equal_by_chance_must():
    def fingerprint(shape):
        return Fingerprint(
            (Leaf("embed.weight", "float32", shape, "0" * 32), Leaf("head.weight", "float32", shape, "0" * 32))
        )

    assert fits(fingerprint((10, 4)), {"embed.weight": (10, 4)})
    assert not fits(fingerprint((10,)), {"embed.weight": (10,)})
    assert not fits(fingerprint((10, 4)), {"embed.weight": (10, 4), "head.weight": (9, 4)})


def test_a_backbone_may_be_in_several_files_and_of_another_precision(save):
    assert backbone_shapes(save(SHAPES, files=2)) == SHAPES


def test_a_folder_without_a_backbone_says_what_was_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors file; expected the folder of a backbone"):
        backbone_shapes(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        backbone_shapes(tmp_path)


def test_a_search_by_backbone_counts_and_pages_what_fits_and_passes_over_damage(hub, new_checkpoint, save):
    for number in range(3):
        hub.push(new_checkpoint(value=number), f"me/d{number}")
    folder = save(SHAPES)
    lines, total = hub.search(Query(sort="name"), limit=1, offset=1, backbone=folder)
    assert ([line.name for line in lines], total) == (["me/d1"], 3)
    assert hub.search(Query("d2"), backbone=folder)[1] == 1

    digest = hub.registry(None).document("me/d1").versions["v1"].digest
    hub.registry(None).store.delete(object_key(digest.removeprefix("sha256:")))
    assert [line.name for line in hub.search(Query(sort="name"), backbone=folder)[0]] == ["me/d0", "me/d2"]
    assert hub.search(Query(), backbone=save({"other": (1,), **dict.fromkeys(SHAPES, (1,))})) == ([], 0)
