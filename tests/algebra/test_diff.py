"""Two deltas are compared by their updates."""

import pytest
import torch

from deltahub import diff
from deltahub.algebra.diff_page import page
from deltahub.algebra.factors import effective_rank
from deltahub.checkpoint.backbone_record import Fingerprint
from tests.algebra.making import RECORD, config_of, numbers, tensors_in, updates_of, write, write_lora, write_peft


def test_equal_products_of_other_factors_are_the_same_update(tmp_path):
    delta = write_lora(tmp_path / "a", 1)
    config, tensors = config_of(delta), tensors_in(delta)
    turn = torch.linalg.qr(numbers(2, 2, seed=9))[0]
    for name in tensors:
        tensors[name] = turn @ tensors[name] if name.endswith("A") else tensors[name] @ turn.T
    other = write(tmp_path / "b", {k: v for k, v in config.items() if k != "files"}, tensors, RECORD)
    difference = diff(delta, other)

    assert difference.options == {}
    assert difference.cosine == pytest.approx(1)
    assert all(part.difference < 1e-6 for part in difference.updates)
    assert diff(delta, delta).same


def test_an_update_is_compared_as_its_dense_product(tmp_path):
    pair = [write_lora(tmp_path / "a", 1), write_lora(tmp_path / "b", 2, lora_r=3, use_rslora=True)]
    first, second = map(updates_of, pair)
    difference = diff(*pair)
    for part in difference.updates:
        u, v = first[part.name], second[part.name]
        assert part.cosine == pytest.approx(float(torch.cosine_similarity(u.flatten(), v.flatten(), 0)), abs=1e-6)
        assert part.difference == pytest.approx(float((v - u).norm() / u.norm()), rel=1e-6)
        assert part.norms == pytest.approx((float(u.norm()), float(v.norm())))
        assert part.ranks == (2, 3)
        expected = [effective_rank(torch.linalg.svdvals(one)) for one in (u, v)]
        assert part.effective_ranks == pytest.approx(expected, rel=1e-4)
    whole = [torch.cat([side[name].flatten() for name in sorted(side)]) for side in (first, second)]
    assert difference.cosine == pytest.approx(float(torch.cosine_similarity(*whole, 0)), abs=1e-6)
    assert difference.difference == pytest.approx(float((whole[1] - whole[0]).norm() / whole[0].norm()))
    assert difference.options == {"lora_r": (2, 3), "use_rslora": (None, True)}


def test_parts_of_one_delta_only_and_other_backbones_are_listed(tmp_path):
    first = write_lora(tmp_path / "a", 1, trained={"head.weight": numbers(2, 3, seed=1)})
    second = write_lora(tmp_path / "b", 2, shapes={"block.query": (5, 4), "block.key": (2, 2)})
    third = write_lora(tmp_path / "c", 2, shapes={"block.query": (4, 4)}, record=Fingerprint(RECORD.leaves[:1]))
    difference = diff(first, second)

    assert difference.only_first == ("block.value", "head.weight")
    assert difference.only_second == ("block.key",)
    assert difference.backbone == "exact"
    assert not difference.same
    assert diff(first, third).backbone == "incompatible"
    assert "block.query" in diff(first, third).only_first
    assert diff(first, write_peft(tmp_path / "p", 1)).backbone == "unknown"


def test_other_methods_are_compared_value_by_value(tmp_path):
    values = [{"block.query.deltas.bias": numbers(5, seed=seed)} for seed in (1, 2)]
    pair = [write(tmp_path / str(n), {"delta_type": "bitfit"}, value, RECORD) for n, value in enumerate(values)]
    (part,) = diff(*pair).tensors
    first, second = (value["block.query.deltas.bias"] for value in values)

    assert part.difference == pytest.approx(float((second - first).norm() / first.norm()))
    assert (part.ranks, part.effective_ranks) == (None, None)
    mixed = diff(pair[0], write_lora(tmp_path / "lora", 1))
    assert mixed.options["delta_type"] == ("bitfit", "lora")
    assert (mixed.cosine, mixed.updates, mixed.tensors) == (None, (), ())


def test_an_update_of_zero_has_no_angle(tmp_path):
    pair = [write_lora(tmp_path / "a", 1, lora_alpha=0), write_lora(tmp_path / "b", 1)]
    assert {(part.cosine, part.difference) for part in diff(*pair).updates} == {(None, None)}
    assert diff(pair[0], pair[0]).same


def test_the_page_shows_every_module_and_no_name_as_markup(tmp_path):
    shapes = {"block.<b>query": (5, 4), "a" * 80: (2, 2)}
    pair = [write_lora(tmp_path / name, seed, shapes=shapes, record=None) for name, seed in (("a", 1), ("b", 2))]
    html = page(diff(*pair))

    assert "<b>" not in html
    assert html.count("block.&lt;b&gt;query") == 2
    assert "<svg" in html
    assert "<script" not in html
    assert "share no module" in page(diff(pair[0], write_lora(tmp_path / "c", 3)))
