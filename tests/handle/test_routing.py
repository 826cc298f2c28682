"""Each row of a batch through a delta of its own: what comes out is what one forward for each delta gives."""

import pytest
import torch
from torch import nn

from deltahub import deltas_of, route
from tests.backbones import BACKBONES, bert, gpt2, t5, vit
from tests.engine.crowds import ROUTED, four_rows, one_by_one, only, put_on, routed
from tests.grids import pairs

pytestmark = pytest.mark.slow  # every delta type on every family


# Below all types share batches on several families; alone each meets BERT and another.
PAIRS = [
    pair for pair in pairs(ROUTED, sorted(BACKBONES), always=["bert"]) if pair != ("token_rows", "vit")
]  # no tokens


@pytest.mark.parametrize(("kind", "family"), PAIRS)
def test_each_row_comes_out_as_with_its_delta_alone(kind, family):
    backbone = BACKBONES[family]()
    for seed, name in enumerate(("en", "fr", "silent")):
        put_on(backbone, kind, name, seed)
    rows, batch = ["en", "fr", None, "en"], four_rows(backbone)
    expected = one_by_one(backbone, rows, batch)

    found = routed(backbone, rows, batch)
    assert torch.allclose(expected, found, atol=1e-5)
    assert not torch.allclose(expected[0], only(backbone, "fr", batch)[0], atol=1e-3)


@pytest.mark.parametrize("make", [bert, gpt2, t5, vit], ids=lambda make: make.__name__)
def test_deltas_of_every_type_share_a_batch(make):
    backbone = make()
    kinds = [kind for kind in ROUTED if (kind, make) != ("token_rows", vit)]
    for seed, kind in enumerate(kinds):
        put_on(backbone, kind, f"my_{kind}", seed)
    names = [f"my_{kind}" for kind in kinds]
    batch = four_rows(backbone)

    for start in range(0, len(names), 3):
        some = names[start : start + 3]
        rows = some + [None] * (4 - len(some))
        assert torch.allclose(one_by_one(backbone, rows, batch), routed(backbone, rows, batch), atol=1e-5)


def test_rows_of_none_are_those_of_the_bare_backbone_bit_for_bit():
    backbone = bert()
    batch = four_rows(backbone)
    with torch.no_grad():
        bare = backbone(**batch).logits
    put_on(backbone, "adapter", "a")
    put_on(backbone, "bitfit", "b")

    found = routed(backbone, ["a", None, "b", None], batch)
    assert torch.equal(bare[[1, 3]], found[[1, 3]])
    assert torch.equal(bare, routed(backbone, [None] * 4, batch))


def test_handles_and_names_mean_the_same():
    backbone = bert()
    en, fr = (put_on(backbone, "lora", name, seed) for seed, name in enumerate(("en", "fr")))
    batch = four_rows(backbone)

    by_handle = routed(backbone, [en, fr, deltas_of(backbone)["en"], None], batch)
    assert torch.equal(by_handle, routed(backbone, ["en", "fr", "en", None], batch))


def test_loras_of_several_ranks_and_scales_go_at_once():
    backbone = bert()
    for seed, (name, rank) in enumerate({"a": 1, "b": 4, "c": 8}.items()):
        put_on(backbone, "lora", name, seed, lora_r=rank, lora_alpha=3 + seed)
    rows, batch = ["c", "a", "b", "a"], four_rows(backbone)

    assert torch.allclose(one_by_one(backbone, rows, batch), routed(backbone, rows, batch), atol=1e-5)


def test_parts_of_a_fused_layer_are_routed_whichever_they_are():
    backbone = gpt2()
    for seed, (name, parts) in enumerate({"q": ["attn.q"], "qv": ["attn.q", "attn.v"], "q2": ["attn.q"]}.items()):
        put_on(backbone, "lora", name, seed, modified_modules=parts)
    batch = four_rows(backbone)

    for rows in (["q", "q2", None, "q"], ["q", "qv", "q2", None]):
        assert torch.allclose(one_by_one(backbone, rows, batch), routed(backbone, rows, batch), atol=1e-5)


@pytest.mark.parametrize("rows", [["en", "fr", None, "en"], ["en"] * 4], ids=["mixed", "one"])
@pytest.mark.parametrize("kind", ROUTED)
def test_gradients_are_those_of_training_each_delta_on_its_own_rows(kind, rows):
    backbone = bert()
    deltas = [put_on(backbone, kind, name, seed) for seed, name in enumerate(("en", "fr"))]
    batch = four_rows(backbone)
    expected = {}
    for delta in deltas:
        mine = [row for row, name in enumerate(rows) if name == delta.name]
        for other in deltas:
            other.attach() if other is delta else other.detach()
        backbone.zero_grad(set_to_none=True)
        backbone(**batch).logits[mine].square().sum().backward()
        expected |= {(delta.name, name): p.grad for name, p in delta.named_parameters()}
    for delta in deltas:
        delta.attach()
        for parameter in delta.parameters():
            parameter.grad = None

    with route(backbone, rows):
        backbone(**batch).logits[[row for row, name in enumerate(rows) if name]].square().sum().backward()

    for delta in deltas:
        for name, parameter in delta.named_parameters():
            want = expected[delta.name, name]
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(torch.zeros_like(parameter) if want is None else want, found, atol=1e-4), name
    assert any(parameter.grad.abs().sum() > 0 for parameter in deltas[0].parameters())


def test_rows_train_with_dropout_of_their_own():
    backbone = bert()
    for seed, name in enumerate(("a", "b")):
        put_on(backbone, "lora", name, seed, lora_dropout=0.5)
    batch = four_rows(backbone)
    kept = routed(backbone, ["a", "b", "a", "b"], batch)
    for delta in deltas_of(backbone).values():
        for insertion in delta.insertions.values():
            insertion.train()

    first, second = (routed(backbone, ["a", "b", "a", "b"], batch) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(kept, routed(backbone.eval(), ["a", "b", "a", "b"], batch))


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("kind", ROUTED)
def test_gradient_checkpointing_gives_the_same_gradients(kind, reentrant):
    backbone = bert().train()
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    deltas = [put_on(backbone, kind, name, seed) for seed, name in enumerate(("en", "fr"))]
    batch = four_rows(backbone)

    def gradients():
        backbone.zero_grad(set_to_none=True)
        with route(backbone, ["fr", "en", None, "fr"]):
            backbone(**batch).logits.square().sum().backward()
        return {(delta.name, name): p.grad for delta in deltas for name, p in delta.named_parameters()}

    plain = gradients()
    backbone.activation_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients()
    assert backbone.is_activation_checkpointing
    assert plain.keys() == again.keys()
    for key, gradient in plain.items():
        assert gradient is not None
        assert torch.allclose(gradient, again[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_keep_their_dtypes(dtype):
    backbone = bert()
    for seed, (name, kind) in enumerate({"a": "lora", "b": "lora", "c": "adapter"}.items()):
        put_on(backbone, kind, name, seed)
    rows, batch = ["a", "b", "c", None], four_rows(backbone)
    with torch.autocast("cpu", dtype):
        expected, found = one_by_one(backbone, rows, batch), routed(backbone, rows, batch)
        assert torch.allclose(expected, found, atol=0.05, rtol=0.05)

    backbone.to(dtype)
    expected, found = one_by_one(backbone, rows, batch), routed(backbone, rows, batch)
    assert found.dtype == dtype
    assert torch.allclose(expected, found, atol=0.05, rtol=0.05)
