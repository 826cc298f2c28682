"""Each row of a batch through a delta of its own: what comes out is what one forward for each delta gives."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import deltahub.deltas  # noqa: F401  (registers the types)
from deltahub import AdapterModel, AutoDeltaModel, BitFitModel, LoraModel, deltas_of, route
from deltahub.engine.delta import delta_classes
from deltahub.engine.insertion import Insertion
from deltahub.errors import RouteError
from tests.backbones import BACKBONES, bert, gpt2, inputs_for, llama, stir, t5, tensors_of, untouched, vit
from tests.deltas.test_contract import OPTIONS

VARIANTS = {"dora": {"delta_type": "lora", "lora_r": 2, "use_dora": True}}
WHOLE = {"soft_prompt"}  # these change the length of a sequence
KINDS = sorted({*delta_classes(), *VARIANTS} - WHOLE)


def put_on(backbone, kind, name, seed=0, **options):
    """A delta that does something, frozen around it as for training."""
    document = VARIANTS.get(kind, {"delta_type": kind, **OPTIONS.get(kind, {})})
    delta = AutoDeltaModel.from_config({**document, **options}, backbone, name=name)
    delta.freeze_module()
    stir(delta, seed)
    return delta


def four_rows(backbone):
    """A batch of four rows that the backbone understands."""
    first = inputs_for(backbone)
    return {key: torch.cat([tensor, tensor.flip(-1)]) for key, tensor in first.items()}


def only(backbone, name, batch):
    """The logits with one delta attached, or none."""
    kept = {other: delta.attached for other, delta in deltas_of(backbone).items()}
    for other, delta in deltas_of(backbone).items():
        delta.attach() if other == name else delta.detach()
    with torch.no_grad():
        logits = backbone(**batch).logits
    for other, delta in deltas_of(backbone).items():
        delta.attach() if kept[other] else delta.detach()
    return logits


def one_by_one(backbone, names, batch):
    """For each row the logits of a forward with its delta alone."""
    return torch.stack([only(backbone, name, batch)[row] for row, name in enumerate(names)])


def routed(backbone, rows, batch):
    with torch.no_grad(), route(backbone, rows):
        return backbone(**batch).logits


@pytest.mark.parametrize("make", BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_row_comes_out_as_with_its_delta_alone(kind, make):
    backbone = make()
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
    for seed, kind in enumerate(KINDS):
        put_on(backbone, kind, f"my_{kind}", seed)
    names = [f"my_{kind}" for kind in KINDS]
    batch = four_rows(backbone)

    for start in range(0, len(names), 3):
        rows = [*names[start : start + 3], None, None, None][:3] + [None]
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
@pytest.mark.parametrize("kind", KINDS)
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
@pytest.mark.parametrize("kind", KINDS)
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


# ----- heads -----


def with_head(backbone, name, seed):
    """A LoRA with a classifier of its own."""
    delta = LoraModel(backbone, lora_r=2, name=name)
    delta.freeze_module(exclude=["deltas", "classifier"])
    stir(delta, seed)
    with torch.no_grad():
        backbone.classifier.weight.add_(1 + seed)
        backbone.classifier.bias.sub_(seed)
    return delta


def test_rows_go_through_the_heads_of_their_deltas():
    backbone = bert()
    for seed, name in enumerate(("en", "fr", "silent")):
        with_head(backbone, name, seed)
    tensors = tensors_of(backbone)
    names = [name for name, _ in backbone.named_modules()]
    batch = four_rows(backbone)

    for rows in (["en", "fr", None, "en"], ["silent", "fr", None, None], ["fr"] * 4, [None] * 4):
        expected = one_by_one(backbone, rows, batch)
        assert torch.allclose(expected, routed(backbone, rows, batch), atol=1e-5)
        assert all(torch.equal(tensor, backbone.state_dict()[name]) for name, tensor in tensors.items())
        assert names == [name for name, _ in backbone.named_modules()]
        assert not backbone.classifier._forward_hooks


@pytest.mark.parametrize(
    ("make", "trained"),
    [
        (bert, "layer_norm"),
        (bert, "embeddings.word_embeddings"),
        (gpt2, "attn.c_proj"),
        (gpt2, "wte"),
        (t5, "lm_head"),
        (vit, "classifier"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_other_layers_that_deltas_trained_are_routed_too(make, trained):
    backbone = make()
    for seed, name in enumerate(("en", "fr")):
        delta = put_on(backbone, "adapter", name, seed)
        delta.freeze_module(exclude=["deltas", trained])
        own = [p for name, p in backbone.named_parameters() if p.requires_grad and ".deltas." not in name]
        assert own
        with torch.no_grad():
            for parameter in own:
                parameter.add_(
                    0.3 * (seed + 1) * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                )
        delta.detach()
    for delta in deltas_of(backbone).values():
        delta.attach()
    rows, batch = ["en", "fr", None, "en"], four_rows(backbone)

    assert torch.allclose(one_by_one(backbone, rows, batch), routed(backbone, rows, batch), atol=1e-4)


def test_a_tensor_that_no_row_can_have_of_its_own_is_named():
    backbone = nn.ModuleDict({"norm": nn.BatchNorm1d(4), "layer": nn.Linear(4, 4)})
    for name in ("a", "b"):
        LoraModel(backbone, modified_modules=["layer"], name=name).freeze_module(exclude=["deltas", "norm"])

    with untouched(backbone), pytest.raises(RouteError, match=r"norm\.\w+ has a value of its own .* BatchNorm1d"):
        route(backbone, ["a", "b"]).__enter__()
    with route(backbone, ["b", "b"]):  # whose values these are
        pass


def test_heads_of_several_deltas_are_not_trained_in_one_batch():
    backbone = bert().train()
    for seed, name in enumerate(("en", "fr")):
        with_head(backbone, name, seed)
    batch = four_rows(backbone)

    with (
        route(backbone, ["en", "fr", "en", "fr"]),
        pytest.raises(
            RouteError, match=r"classifier\.\w+ is trained by 'en' and by 'fr': heads of several deltas cannot"
        ),
    ):
        backbone(**batch)
    with route(backbone, ["fr", None, "fr", "fr"]):  # the head in force, and the backbone's own, which nobody trains
        backbone(**batch).logits[0].sum().backward()
    assert backbone.classifier.weight.grad.abs().sum() > 0


# ----- the block -----


def test_leaving_the_block_leaves_no_trace_even_after_an_error():
    backbone = bert()
    for seed, name in enumerate(("en", "fr")):
        with_head(backbone, name, seed)
    batch = four_rows(backbone)
    expected = backbone(**batch).logits

    with untouched(backbone), pytest.raises(ZeroDivisionError), route(backbone, ["en", "fr", None, None]):
        raise ZeroDivisionError
    assert torch.equal(expected, backbone(**batch).logits)


def test_routes_on_one_backbone_exclude_each_other():
    backbone = bert()
    put_on(backbone, "lora", "en")
    failures = []

    def elsewhere():
        try:
            with route(backbone, ["en"]):
                pass
        except RouteError as error:
            failures.append(str(error))

    with route(backbone, ["en", None]):
        with pytest.raises(RouteError, match="A route is open on this backbone already"), route(backbone, ["en"]):
            pass
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    with route(backbone, ["en"]):
        pass
    assert len(failures) == 1


def test_deltas_stay_as_they_are_inside():
    backbone = bert()
    lora = put_on(backbone, "lora", "en")
    changes = {
        "attach": lora.attach,
        "detach": lora.detach,
        "remove": lora.remove,
        "merge": lora.merge,
        "freeze": lambda: lora.freeze_module(exclude=["deltas", "classifier"]),
        "add": lambda: BitFitModel(backbone),
    }

    with route(backbone, ["en", None]), untouched(backbone):
        for change in changes.values():
            with pytest.raises(RouteError, match="A route is open on this backbone, and its deltas stay"):
                change()
    assert lora.attached


@pytest.mark.parametrize(
    "remake", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_made_inside_is_routed_nowhere(remake):
    backbone = bert()
    for seed, name in enumerate(("en", "fr")):
        with_head(backbone, name, seed)
    batch = four_rows(backbone)
    expected = backbone(**batch).logits
    with route(backbone, ["en", "fr", None, None]):
        twin = remake(backbone)

    assert torch.equal(expected, twin(**batch).logits)
    deltas_of(twin)["fr"].detach()
    rows = ["en", None, None, "en"]
    assert torch.allclose(one_by_one(twin, rows, batch), routed(twin, rows, batch), atol=1e-5)


def test_a_compiled_backbone_is_routed_without_a_break():
    backbone = bert()
    for seed, (name, kind) in enumerate({"en": "lora", "fr": "lora", "ad": "adapter"}.items()):
        put_on(backbone, kind, name, seed)
    batch = four_rows(backbone)
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)

    try:
        for rows in (["en", "fr", None, "ad"], ["fr", "en", "ad", None], ["fr", "fr", "fr", "en"]):
            with torch.no_grad(), route(backbone, rows):
                found = compiled(**batch).logits
            assert torch.allclose(one_by_one(backbone, rows, batch), found, atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(backbone(**batch).logits, compiled(**batch).logits, atol=1e-5)
    finally:
        torch.compiler.reset()


# ----- generate -----


def written(backbone, rows=None, beams=1, **options):
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10], [5, 6, 7]])
    if rows is None:
        return backbone.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, num_beams=beams, **options)
    with route(backbone, rows, beams=beams):
        return backbone.generate(prompt, max_new_tokens=4, do_sample=False, pad_token_id=0, num_beams=beams, **options)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("make", [llama, gpt2, t5], ids=lambda make: make.__name__)
def test_generate_writes_each_row_with_its_delta(make, beams):
    backbone = make()
    if make is t5:
        backbone.generation_config.decoder_start_token_id = 0
    for seed, (name, kind) in enumerate({"en": "lora", "fr": "adapter"}.items()):
        put_on(backbone, kind, name, seed)
    expected = []
    for row, name in enumerate(("fr", "en", None)):
        for delta in deltas_of(backbone).values():
            delta.attach() if delta.name == name else delta.detach()
        expected.append(written(backbone, beams=beams)[row])
    for delta in deltas_of(backbone).values():
        delta.attach()

    assert torch.equal(torch.stack(expected), written(backbone, ["fr", "en", None], beams))


def test_beams_that_were_not_announced_are_refused():
    backbone = llama()
    put_on(backbone, "lora", "en")

    with route(backbone, ["en", None]), pytest.raises(RouteError, match="2 rows, the batch has 6 .* pass beams=3"):
        backbone.generate(torch.ones(2, 3, dtype=torch.long), num_beams=3, max_new_tokens=2, pad_token_id=0)


# ----- refusals -----


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], r"A route lists a delta or None for each row of the batch, got \[\]"),
        ("en", "A route lists a delta or None for each row of the batch, got 'en'"),
        (["de"], "'de' is not a delta on this backbone, which has 'en', 'off'"),
        ([3], "3 is not a delta on this backbone"),
        (["off"], r"'off' is detached. Call attach\(\) first"),
    ],
)
def test_what_cannot_be_routed_is_refused(rows, why):
    backbone = bert()
    put_on(backbone, "lora", "en")
    put_on(backbone, "lora", "off").detach()

    with untouched(backbone), pytest.raises(RouteError, match=why), route(backbone, rows):
        pass


def test_deltas_of_other_backbones_are_refused():
    backbone = bert()
    en = put_on(backbone, "lora", "en")
    stranger, removed = put_on(bert(), "lora", "en"), put_on(backbone, "lora", "gone")
    removed.remove()

    for delta in (stranger, removed):
        with pytest.raises(RouteError, match="is not a delta on this backbone"), route(backbone, [en, delta]):
            pass
    with pytest.raises(RouteError, match="There is no delta on this backbone"), route(bert(), [None]):
        pass


def test_a_merged_delta_is_refused():
    backbone = bert()
    put_on(backbone, "lora", "en").merge()

    with (
        pytest.raises(RouteError, match=r"'en' is merged into the backbone's weights.*unmerge"),
        route(backbone, [None]),
    ):
        pass


@pytest.mark.parametrize("count", [3, 5])
def test_a_batch_of_another_size_is_refused_with_both_numbers(count):
    backbone = bert()
    put_on(backbone, "lora", "en")

    with route(backbone, ["en"] * count), pytest.raises(RouteError, match=f"route has {count} rows, the batch has 4 "):
        backbone(**four_rows(backbone))


@pytest.mark.parametrize("beams", [0, -1, 1.5])
def test_beams_are_a_count(beams):
    backbone = bert()
    put_on(backbone, "lora", "en")

    with pytest.raises(RouteError, match=f"beams must be a whole number of at least 1, got {beams}"):
        route(backbone, ["en"], beams=beams).__enter__()


class Turned(nn.Module):
    """Passes its rows on as the second dimension, as some attentions do."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(50, 4), nn.Linear(4, 4)

    def forward(self, input_ids):
        return self.layer(self.embed(input_ids).transpose(0, 1)).transpose(0, 1)


def test_a_module_that_is_given_rows_second_is_refused_whatever_the_length():
    backbone = Turned()
    LoraModel(backbone, modified_modules=["layer"], name="en")

    with route(backbone, ["en", None]):
        with pytest.raises(RouteError, match="route has 2 rows, the batch has 3 "):
            backbone(torch.ones(2, 3, dtype=torch.long))
        with pytest.raises(RouteError, match=r"layer is given \[2, 2, 4\], and it is not certain that the first"):
            backbone(torch.ones(2, 2, dtype=torch.long))


def test_a_batch_as_long_as_its_rows_is_routed_where_rows_come_first():
    backbone = bert()
    put_on(backbone, "lora", "en")
    batch = {"input_ids": torch.arange(16).view(4, 4)}
    rows = ["en", None, None, "en"]

    assert torch.allclose(one_by_one(backbone, rows, batch), routed(backbone, rows, batch), atol=1e-5)


def test_a_delta_that_changes_the_length_is_refused():
    class Longer(Insertion):
        keeps_length = False

    backbone = bert()
    delta = AdapterModel(backbone, bottleneck_dim=2, name="long")
    delta._entry.insertions["classifier"] = Longer()

    with pytest.raises(RouteError, match="'long' is a adapter, which changes the length of a sequence"):
        route(backbone, ["long"]).__enter__()
