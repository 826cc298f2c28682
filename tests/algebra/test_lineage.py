"""A computed delta can be computed again from its parents' digests."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deltahub import combine, push, resize, scale, verify_lineage
from deltahub.checkpoint import checkpoint
from deltahub.checkpoint.backbone_record import Fingerprint
from deltahub.errors import ConfigError, NotFoundError
from tests.algebra.making import config_of, numbers, tensors_in, write_lora, write_peft


@pytest.fixture
def pair(tmp_path):
    """Two LoRAs with different heads."""
    return [write_lora(tmp_path / str(n), n, trained={"head.weight": numbers(2, 3, seed=n)}) for n in (1, 2)]


def rewritten(folder, to, *, change=0.0, **options):
    """Write a delta again with other values or another config."""
    config = {**config_of(folder), **options}
    del config["files"]
    tensors = tensors_in(folder)
    tensors["block.query.deltas.lora_B"] += change
    record = Fingerprint.from_bytes((folder / checkpoint.BACKBONE).read_bytes())
    checkpoint.write(to, config, tensors, record, "# A delta\n", save_file)
    return to


@pytest.mark.parametrize(
    "make",
    [
        lambda pair, to: combine(pair, to, weights=[1, -0.3], heads="first"),
        lambda pair, to: combine(pair, to, method="cat", heads="average"),
        lambda pair, to: combine(pair, to, method="dare", rank=2, seed=7, density=0.4, heads="first"),
        lambda pair, to: combine(pair, to, method="ties", energy=0.9, heads="first"),
        lambda pair, to: resize(pair[0], to, rank=1),
        lambda pair, to: scale(pair[0], 0.5, to, heads="first"),
    ],
    ids=["linear", "cat", "dare", "ties", "resize", "scale"],
)
def test_the_same_bytes_come_out_again(pair, tmp_path, make):
    result = make(pair, tmp_path / "c")
    check = verify_lineage(result.folder, pair)

    assert (check.status, check.detail) == ("same bytes", "")
    assert [digest for digest, _ in check.parents] == [checkpoint.describe(folder).digest for folder in pair][
        : len(check.parents)
    ]
    assert [place for _, place in check.parents] == list(map(str, pair))[: len(check.parents)]


def test_parents_are_found_by_digest_in_a_registry_and_in_the_cache(pair, tmp_path):
    pushed = [push(folder, f"acme/{folder.name}") for folder in pair]
    from_folders = combine(pair, tmp_path / "c", heads="first")
    assert [place for _, place in verify_lineage(from_folders.folder).parents] == ["local", "local"]

    references = [str(one.reference) for one in pushed]
    pulled = combine(references, tmp_path / "d", heads="first")
    assert [parent["name"] for parent in config_of(pulled.folder)["parents"]] == references
    assert {place for _, place in verify_lineage(pulled.folder).parents} == {"the cache"}
    combined = push(pulled.folder, "acme/both")
    assert verify_lineage(str(combined.reference)).status == "same bytes"


def test_a_parent_that_is_nowhere_is_named(pair, tmp_path):
    result = combine(pair, tmp_path / "c", heads="first")
    with pytest.raises(NotFoundError, match=str(checkpoint.describe(pair[1]).digest)):
        verify_lineage(result.folder, pair[:1])


@pytest.mark.parametrize(
    ("changes", "status", "detail"),
    [
        ({"change": 1e-6}, "same within rounding", "another release of torch"),
        ({"change": 0.1}, "other content", "block.query.deltas differs by"),
        ({"lora_alpha": 7.0}, "other content", "another lora_alpha"),
        ({"lora_dropout": 0.5}, "other content", "another lora_dropout"),
        ({"backbone_hash": "0" * 32}, "other content", "another backbone_hash"),
    ],
)
def test_another_content_is_noticed(pair, tmp_path, changes, status, detail):
    folder = combine(pair, tmp_path / "c", heads="first").folder
    check = verify_lineage(rewritten(folder, tmp_path / "d", **changes), pair)

    assert check.status == status
    assert detail in check.detail


def test_of_an_operation_that_rounds_nothing_only_the_same_bytes_are_accepted(pair, tmp_path):
    folder = combine(pair, tmp_path / "c", method="cat", heads="first").folder
    assert verify_lineage(folder, pair).status == "same bytes"
    assert verify_lineage(rewritten(folder, tmp_path / "d", change=1e-6), pair).status == "other content"


def test_another_head_and_another_parent_are_noticed(pair, tmp_path):
    folder = combine(pair, tmp_path / "c", heads="first").folder
    config = {key: value for key, value in config_of(folder).items() if key != "files"}
    tensors = tensors_in(folder)
    tensors["head.weight"] = torch.zeros(2, 3)
    record = Fingerprint.from_bytes((folder / checkpoint.BACKBONE).read_bytes())
    checkpoint.write(tmp_path / "d", config, tensors, record, "# A delta\n", save_file)

    assert "head.weight differs" in verify_lineage(tmp_path / "d", pair).detail
    with pytest.raises(NotFoundError):
        verify_lineage(folder, [pair[0], rewritten(pair[1], tmp_path / "e", change=1.0)])


def test_a_parent_of_peft_is_known_by_its_weights_and_its_config(tmp_path):
    adapters = [write_peft(tmp_path / "p1", 1), write_peft(tmp_path / "p2", 2)]
    result = combine(adapters, tmp_path / "c")
    assert verify_lineage(result.folder, adapters).status == "same bytes"

    path = adapters[0] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 6}))
    with pytest.raises(NotFoundError):
        verify_lineage(result.folder, adapters)


def test_a_delta_that_was_trained_has_no_lineage(pair, tmp_path):
    with pytest.raises(ConfigError, match="was not computed from other deltas"):
        verify_lineage(pair[0])
    result = combine(pair, tmp_path / "c", heads="first")
    for lineage in (
        {"operation": "mixed", "parameters": {}},
        {"operation": "combine", "parameters": {"method": "linear", "mood": 1}},
        {"operation": "scale", "parameters": {}},
    ):
        with pytest.raises(ConfigError, match="Update deltahub"):
            verify_lineage(rewritten(result.folder, tmp_path / "d", lineage=lineage), pair)
