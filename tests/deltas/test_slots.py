"""Slots for LoRAs: each acts as it does as a delta, and no exchange has a compiled backbone compiled again."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from deltahub import AdapterModel, LoraModel, LoraSlots, deltas_of, route
from deltahub.deltas.slot_layers import product_of
from deltahub.engine.routing.products import gathered
from deltahub.errors import ConfigError, RouteError, TargetError
from tests.backbones import equal, gpt2, llama, logits_of, stir, tensors_of

LAYERS = ["q_proj", "v_proj"]
RANKS = {"en": 2, "fr": 3, "de": 8}


def loras(backbone, modules=LAYERS):
    """Put three LoRAs of different ranks and factors on a backbone, detached, and return them with the logits of each."""
    deltas, expected = {}, {None: logits_of(backbone)}
    for seed, (name, rank) in enumerate(RANKS.items()):
        delta = deltas[name] = LoraModel(backbone, lora_r=rank, lora_alpha=5, modified_modules=modules, name=name)
        torch.manual_seed(seed)
        stir(delta)
        expected[name] = logits_of(backbone)
        delta.detach()
    return deltas, expected


@pytest.fixture(scope="module")
def served():
    backbone = llama().requires_grad_(False)
    deltas, expected = loras(backbone)
    slots = LoraSlots(backbone, slots=3, rank=8, modified_modules=LAYERS, name="slots")
    for name, delta in deltas.items():
        slots.load(name, delta)
    return backbone, deltas, expected, slots


@pytest.mark.parametrize(
    ("make", "modules"), [(llama, LAYERS), (gpt2, ["attn.q", "attn.v"]), (gpt2, ["c_attn", "c_fc"])]
)
def test_a_lora_acts_in_a_slot_as_it_does_as_a_delta(make, modules):
    backbone = make()
    deltas, expected = loras(backbone, modules)
    slots = deltas["de"].reserve(slots=3, rank=16)
    for name in ("en", "fr"):
        slots.load(name, deltas[name])

    for name in (*RANKS, None):
        slots.select(name)
        assert slots.selected == name
        assert torch.allclose(expected[name], logits_of(backbone), atol=1e-5)
    slots.remove()
    assert torch.equal(expected[None], logits_of(backbone))


@pytest.mark.parametrize("as_numbers", [False, True])
def test_each_row_has_the_lora_of_its_slot(served, as_numbers):
    backbone, _, expected, slots = served
    names = ["de", None]
    rows = torch.tensor([slots.names["de"], -1]) if as_numbers else names
    slots.select("fr")

    with slots.route(rows):
        routed = logits_of(backbone)

    for number, name in enumerate(names):
        assert torch.allclose(expected[name][number], routed[number], atol=1e-5)
    assert torch.allclose(expected["fr"], logits_of(backbone), atol=1e-5)


def test_nothing_is_compiled_again_when_slots_are_filled_selected_scaled_and_routed():
    backbone, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 3, 4)
    deltas = []
    for rank in RANKS.values():
        deltas.append(LoraModel(backbone, lora_r=rank, lora_alpha=5, modified_modules=["0", "2"]))
        stir(deltas[-1])
        deltas[-1].detach()
    slots = deltas[0].reserve(slots=3, name="slots")
    slots.load("other", deltas[1])
    compiled, names = torch.compile(backbone, backend="eager", fullgraph=True), ["lora", "other", None]
    with torch.no_grad():
        compiled(x)
        with slots.route(["lora", "other"]):
            compiled(x)
        graphs = counters["stats"]["unique_graphs"]

        for number in range(100):
            slots.load("lora", deltas[number % 3])
            slots.set_strength("lora", 1 + number / 10)
            slots.select(names[number % 3])
            found = compiled(x)
            with slots.route([names[number % 3], names[number % 2]]):
                routed = compiled(x)
            assert torch.allclose(found[0], routed[0], atol=1e-5)
        assert torch.allclose(backbone(x), compiled(x), atol=1e-5)

    assert graphs > 0
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_strength_multiplies_the_update(served):
    backbone, deltas, expected, slots = served
    slots.select("fr")

    slots.set_strength("fr", 0.0)
    assert torch.equal(expected[None], logits_of(backbone))
    slots.load("fr", deltas["fr"])
    assert torch.allclose(expected["fr"], logits_of(backbone), atol=1e-5)


@pytest.mark.parametrize("form", ["deltahub", "peft"])
def test_a_slot_is_filled_from_a_folder_of_any_format(served, tmp_path, form):
    backbone, deltas, expected, slots = served
    deltas["fr"].attach()
    deltas["fr"].export(tmp_path / "fr", form) if form == "peft" else deltas["fr"].save_finetuned(tmp_path / "fr")
    deltas["fr"].detach()

    assert slots.load("de", tmp_path / "fr", check_hash=form != "peft") == 2
    slots.select("de")
    assert torch.allclose(expected["fr"], logits_of(backbone), atol=1e-5)
    slots.load("de", deltas["de"])


def test_a_copy_of_the_backbone_has_slots_of_its_own_and_no_route(served):
    backbone, _, expected, slots = served
    slots.select("en")
    with slots.route(["fr", "fr"]):
        twin = copy.deepcopy(backbone)

    assert torch.allclose(expected["en"], logits_of(twin), atol=1e-5)
    deltas_of(twin)["slots"].select("de")
    assert torch.allclose(expected["en"], logits_of(backbone), atol=1e-5)


def test_a_slot_that_is_freed_takes_another_lora():
    backbone = llama(num_hidden_layers=1)
    delta = LoraModel(backbone, lora_r=2, modified_modules=LAYERS)
    stir(delta)
    slots = delta.reserve(slots=1)
    with pytest.raises(ConfigError, match=r"All 1 slots are in use \('lora'\), so 'other' has no room"):
        slots.load("other", delta)

    slots.unload("lora")
    assert slots.selected is None
    assert slots.load("other", delta) == 0


def dora(backbone):
    return LoraModel(backbone, modified_modules=LAYERS, use_dora=True)


def with_bias(backbone):
    return LoraModel(backbone, modified_modules=LAYERS, use_bias=True)


def wide(backbone):
    return LoraModel(backbone, lora_r=9, modified_modules=LAYERS)


def elsewhere(backbone):
    return LoraModel(backbone, lora_r=2, modified_modules=[*LAYERS, "o_proj"])


def with_head(backbone):
    delta = LoraModel(backbone, lora_r=2, modified_modules=LAYERS)
    delta.freeze_module(exclude=["deltas", "lm_head"])
    return delta


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (dora, "DecomposedUpdate at model.layers.0.self_attn.q_proj, and slots hold plain LoRAs"),
        (with_bias, "LoRA with a bias at"),
        (wide, "has rank 9 at model.layers.0.self_attn.q_proj, and the slots have rank 8. Reserve slots with rank=9"),
        (elsewhere, "acts on model.layers.0.self_attn.o_proj, where no slots are reserved"),
        (with_head, "brings its own value of lm_head.weight"),
        (AdapterModel, "where no slots are reserved"),
        (lambda _: LoraModel(llama(num_hidden_layers=1), lora_r=2), "is a delta on another backbone"),
    ],
)
def test_a_delta_that_does_not_fit_is_refused_before_anything_changes(make, message):
    backbone = llama(num_hidden_layers=1)
    held = LoraModel(backbone, lora_r=2, modified_modules=LAYERS, name="held")
    stir(held)
    slots = held.reserve(slots=2, rank=8, name="slots")
    delta = make(backbone)
    before = [copy.deepcopy(dict(insertion.named_buffers())) for insertion in slots.insertions.values()]

    with pytest.raises(ConfigError, match=message):
        slots.load("held", delta)
    assert all(
        equal(old, dict(insertion.named_buffers()))
        for old, insertion in zip(before, slots.insertions.values(), strict=True)
    )
    assert slots.names == {"held": 0}


def test_a_lora_without_room_in_its_own_reservation_leaves_the_backbone_as_it_was():
    backbone = llama(num_hidden_layers=1)
    delta = LoraModel(backbone, lora_r=9, modified_modules=LAYERS)
    stir(delta)
    before = logits_of(backbone)

    with pytest.raises(ConfigError, match="has rank 9"):
        delta.reserve(slots=2, rank=8)
    assert list(deltas_of(backbone)) == ["lora"]
    assert torch.equal(before, logits_of(backbone))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slots": 0}, ConfigError, "slots must be a whole number of at least 1, got 0"),
        ({"rank": True}, ConfigError, "rank must be a whole number"),
        ({"kernel": "cuda"}, ConfigError, "kernel must be 'torch' or 'triton', got 'cuda'"),
        ({"modified_modules": ["embed_tokens"]}, TargetError, "it is an Embedding"),
        ({"modified_modules": ["input_layernorm"]}, TargetError, "expected a Linear"),
    ],
)
def test_slots_that_cannot_be_reserved_are_refused(options, error, message):
    backbone = llama(num_hidden_layers=1)
    before = tensors_of(backbone)
    with pytest.raises(error, match=message):
        LoraSlots(backbone, **options)
    assert equal(before, tensors_of(backbone))


def test_rows_that_name_no_slot_and_other_batches_are_refused(served):
    backbone, deltas, _, slots = served
    for rows in ([], ["en", "it"], "en", torch.tensor([0, 7]), torch.tensor([0.0, 1.0]), torch.tensor([[0, 1]])):
        with pytest.raises(RouteError), slots.route(rows):
            pass
    with slots.route(["en"] * 3), pytest.raises(RouteError, match="The route has 3 rows, and a Linear is given"):
        logits_of(backbone)
    with slots.route(["en", None]):
        with pytest.raises(RouteError, match="open on this backbone already"), route(backbone, ["fr", None]):
            pass
        with pytest.raises(RouteError, match="A route is open"):
            deltas["fr"].attach()
        with pytest.raises(RouteError, match="A route is open"):
            slots.unload("en")
    slots.detach()
    with pytest.raises(RouteError, match="'slots' is detached"), slots.route(["en", None]):
        pass
    slots.attach()


def test_slots_are_neither_saved_nor_part_of_a_state(served, tmp_path):
    backbone, _, _, slots = served
    with pytest.raises(ConfigError, match="not saved"):
        slots.save_finetuned(tmp_path / "slots")
    assert not (tmp_path / "slots").exists()
    assert not any("slots" in name for name in backbone.state_dict())


@pytest.mark.parametrize("sizes", [(3, 1, 70, 65, 5), (2, 18, 33, 130, 16)], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16], ids=str
)  # the interpreter has no products in bfloat16
def test_the_kernels_compute_what_the_gathered_products_compute(monkeypatch, sizes, dtype):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is not installed; on a GPU it comes with PyTorch")
    by_kernels = product_of("triton")
    rows, length, n_in, n_out, rank = sizes
    x, scales, numbers = torch.randn(rows, length, n_in).to(dtype), torch.rand(4), torch.tensor([3, 0, 3])[:rows]
    downs, ups = torch.randn(4, rank, n_in).to(dtype), torch.randn(4, n_out, rank)

    with torch.no_grad():
        found = by_kernels(x, downs, ups, scales, numbers)
    expected = gathered(x, downs, ups, scales, numbers)
    assert found.dtype == dtype
    assert torch.allclose(expected.float(), found.float(), rtol=1e-2, atol=1e-4 if dtype == torch.float32 else 0.1)


def test_without_triton_its_kernels_are_refused(monkeypatch):
    monkeypatch.setattr("deltahub.deltas.slot_layers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package triton"):
        LoraSlots(llama(num_hidden_layers=1), kernel="triton")
