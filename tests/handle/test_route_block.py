"""What holds while a route is open, and what is as before when it is left."""

import copy
import pickle
import threading

import pytest
import torch

from deltahub import BitFitModel, deltas_of, route
from deltahub.errors import RouteError
from tests.backbones import bert, gpt2, llama, t5, untouched
from tests.engine.crowds import four_rows, one_by_one, put_on, routed, with_head


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


@pytest.mark.slow
def test_a_compiled_backbone_is_routed_without_a_break():
    backbone, plain = bert(num_hidden_layers=1), bert(num_hidden_layers=1)
    for model in (backbone, plain):
        for seed, (name, kind) in enumerate({"en": "lora", "fr": "lora", "ad": "adapter"}.items()):
            put_on(model, kind, name, seed)
    batch = four_rows(backbone)
    backbone.bert.encoder.compile(backend="eager", fullgraph=True)  # once for each way of routing it

    for rows in (["en", "fr", None, "ad"], ["fr", "en", "ad", None], ["fr", "fr", "fr", "en"]):
        assert torch.allclose(one_by_one(plain, rows, batch), routed(backbone, rows, batch), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(plain(**batch).logits, backbone(**batch).logits, atol=1e-5)


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

    with route(backbone, ["en", None]), pytest.raises(RouteError, match=r"2 rows, the batch has 6 .* pass beams=3"):
        backbone.generate(torch.ones(2, 3, dtype=torch.long), num_beams=3, max_new_tokens=2, pad_token_id=0)
