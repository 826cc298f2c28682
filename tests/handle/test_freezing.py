import json
import re

import pytest
import torch
from torch import nn

from deltahub import AdapterModel, AutoDeltaModel, BitFitModel, LoraModel
from deltahub.engine.site import is_delta_name
from deltahub.errors import AddressError, ConfigError, NoMatchError
from tests.backbones import OPENDELTA, bert, bert_mlm, equal, forward, gpt2, original, t5, tensors_of, train, untouched

MODELS = {"lora": LoraModel, "adapter": AdapterModel}
ROWS = [row for row in json.loads((OPENDELTA / "_tables" / "freeze.json").read_text()) if row["delta"] in MODELS]


def trainable(backbone):
    """The names of all parameters that train."""
    return {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}


def row_id(row):
    where = "custom" if row["kwargs"] else "default"
    return f"{row['backbone']}-{row['delta']}-{where}-{','.join(row['exclude'] or ())}"


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_parameters_trainable_in_opendelta_stay_trainable_and_none_is_ignored(row):
    backbone = original(row["backbone"])
    delta = MODELS[row["delta"]](backbone, **row["kwargs"])
    expected = {re.sub(r"\.(lora|adapter)\.(modulelist\.)?", r".deltas.\1.", name) for name in row["trainable"]}
    patterns = row["exclude"]
    while True:
        try:
            delta.freeze_module(exclude=patterns)
            break
        except NoMatchError as error:  # the original passed over a name that matches nothing
            patterns = [pattern for pattern in patterns if pattern != error.pattern]

    assert expected <= trainable(backbone)
    # What it froze although it was named: a common name beside addresses by real name, a real name beside addresses by
    # common name, the bias of a layer that has a delta, and a tied embedding.
    for name in trainable(backbone) - expected:
        assert not is_delta_name(name)
        words = name.replace("LayerNorm", "layer_norm").replace("ln_", "layer_norm").replace("wte", "wte, lm_head")
        assert any(pattern.strip("@") in words or pattern in name or pattern.startswith("[r]") for pattern in patterns)


def test_only_named_parameters_train():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])

    own = {name for name, _ in delta.named_parameters()}
    assert len(own) == len({name for name in trainable(backbone) if is_delta_name(name)})
    assert {name for name in trainable(backbone) if not is_delta_name(name)} == {"classifier.weight", "classifier.bias"}


def test_the_default_is_the_deltas_alone():
    backbone = bert()
    LoraModel(backbone).freeze_module()
    assert all(is_delta_name(name) for name in trainable(backbone))

    backbone = bert()
    LoraModel(backbone).freeze_module(exclude="deltas")
    assert all(is_delta_name(name) for name in trainable(backbone))

    backbone = bert()
    LoraModel(backbone, unfrozen_modules=["deltas", "pooler"]).freeze_module()
    assert "bert.pooler.dense.weight" in trainable(backbone)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer_norm", {"attention.output.LayerNorm", "output.LayerNorm"}),
        ("attn.layer_norm", {"attention.output.LayerNorm"}),
        ("[r]layer\\.\\d\\.output\\.dense", {"output.dense"}),
        ("ff.w1", {"intermediate.dense"}),
    ],
)
def test_names_are_real_or_common_or_regular_expressions(pattern, expected):
    backbone = bert()
    LoraModel(backbone).freeze_module(exclude=[pattern])

    assert expected == {re.sub(r".*layer\.\d\.(.*)\.\w+", r"\1", name) for name in trainable(backbone)}


def test_bias_means_every_bias_also_of_layers_that_have_a_delta():
    backbone = bert()
    LoraModel(backbone).freeze_module(exclude=["bias"])

    assert trainable(backbone) == {name for name, _ in backbone.named_parameters() if name.endswith(".bias")}


def test_freezing_twice_leaves_what_the_last_call_named():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])
    delta.freeze_module(exclude=["deltas", "pooler"])

    expected = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert expected == {name for name in trainable(backbone) if not is_delta_name(name)}
    assert expected == {name for name in backbone.state_dict() if not is_delta_name(name)}
    delta.freeze_module(exclude=["deltas"])
    assert all(is_delta_name(name) for name in backbone.state_dict())


def test_a_name_that_matches_nothing_is_an_error_and_nothing_is_frozen():
    backbone = bert()
    delta = LoraModel(backbone)

    with untouched(backbone), pytest.raises(NoMatchError) as caught:
        delta.freeze_module(exclude=["deltas", "clasifier"])

    assert "No module matches 'clasifier'. The nearest names are: classifier" in str(caught.value)
    assert "It was to stay trainable." in str(caught.value)
    assert delta.config.unfrozen_modules == ("deltas",)


def test_the_state_dict_of_the_backbone_holds_only_trainable_parameters():
    backbone = bert()
    LoraModel(backbone).freeze_module(exclude=["deltas", "classifier"])

    assert trainable(backbone) == set(backbone.state_dict())


def test_the_state_dict_can_stay_whole():
    backbone = bert()
    expected = list(backbone.state_dict())
    LoraModel(backbone).freeze_module(set_state_dict=False)

    assert expected == [name for name in backbone.state_dict() if not is_delta_name(name)]


def test_a_wrapper_around_the_backbone_keeps_its_own_tensors():
    class Wrapper(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
            self.head = nn.BatchNorm1d(3)

    backbone = bert()
    LoraModel(backbone).freeze_module()
    names = set(Wrapper(backbone).state_dict())

    assert {name for name in names if name.startswith("head.")} == {
        f"head.{name}" for name in nn.BatchNorm1d(3).state_dict()
    }
    assert {f"model.{name}" for name in backbone.state_dict()} == {name for name in names if name.startswith("model.")}


def test_a_part_of_the_backbone_can_be_frozen_by_names_within_it():
    backbone = bert()
    delta = LoraModel(backbone)
    delta.freeze_module(module=backbone.bert.encoder.layer[0], exclude=["deltas", "attention.output"])

    names = trainable(backbone)
    assert "bert.encoder.layer.0.attention.output.dense.weight" in names
    assert "bert.encoder.layer.0.output.dense.weight" not in names
    assert "bert.encoder.layer.1.output.dense.weight" in names


def test_freezing_a_part_does_not_forget_what_trains_elsewhere():
    backbone = bert()
    before = backbone.classifier.weight.detach().clone()
    delta = LoraModel(backbone)
    delta.freeze_module(exclude=["deltas", "classifier"])
    delta.freeze_module(module=backbone.bert.encoder, exclude=["deltas"])
    train(backbone)

    assert backbone.classifier.weight.requires_grad
    assert torch.equal(backbone.classifier.weight, delta.state_dict()["classifier.weight"])
    delta.detach()
    assert torch.equal(before, backbone.classifier.weight)


def test_a_module_from_elsewhere_is_refused():
    backbone = bert()
    delta = LoraModel(backbone)

    with untouched(backbone), pytest.raises(AddressError, match="This Linear is not part of the backbone"):
        delta.freeze_module(module=nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("make", "name", "first"),
    [
        (gpt2, "lm_head", "transformer.wte.weight"),
        (t5, "lm_head", "shared.weight"),
        (bert_mlm, "cls.predictions.decoder", None),
    ],
)
def test_a_tied_tensor_is_meant_by_any_of_its_names(make, name, first):
    backbone = make()
    delta = LoraModel(backbone)
    whole = {key for key, tensor in backbone.named_parameters(remove_duplicate=False) if not is_delta_name(key)}
    delta.freeze_module(exclude=["deltas", name])
    kept = {key for key in whole if backbone.get_parameter(key) is backbone.get_output_embeddings().weight}
    assert len(kept) > 1
    assert kept == {key for key in backbone.state_dict() if key in whole and not key.endswith("bias")}
    expected = tensors_of(backbone)
    train(backbone)

    assert backbone.get_output_embeddings().weight.requires_grad
    assert backbone.get_input_embeddings().weight is backbone.get_output_embeddings().weight
    assert first is None or first in delta.state_dict()
    delta.detach()
    assert all(
        torch.equal(tensor, backbone.state_dict()[key]) for key, tensor in expected.items() if not is_delta_name(key)
    )


@pytest.mark.parametrize("model", [LoraModel, AdapterModel, BitFitModel])
def test_gradients_reach_only_what_trains(model):
    backbone = bert()
    delta = model(backbone)
    delta.freeze_module()
    before = tensors_of(backbone)
    forward(backbone).square().mean().backward()

    assert {name for name, p in backbone.named_parameters() if p.grad is not None} <= trainable(backbone)
    assert all(parameter.grad is not None for parameter in delta.parameters())
    assert equal(before, tensors_of(backbone))


def two_deltas():
    """A backbone with a finished delta, `lang`, and one to train above it, `task`."""
    backbone = bert()
    lang, task = (AdapterModel(backbone, modified_modules=["layer.0.output"], name=name) for name in ("lang", "task"))
    return backbone, lang, task


def trains(delta):
    return {parameter.requires_grad for parameter in delta.parameters()}


@pytest.mark.parametrize("off", [False, True], ids=["attached", "detached"])
def test_freezing_trains_the_deltas_own_parameters_and_others_only_when_named(off):
    _, lang, task = two_deltas()
    if off:
        lang.detach()

    task.freeze_module()
    assert (trains(lang), trains(task)) == ({False}, {True})
    task.freeze_module(exclude=["deltas", "deltas.lang"])
    assert (trains(lang), trains(task)) == ({True}, {True})
    task.freeze_module(exclude=["[r]deltas\\.lang"])
    assert (trains(lang), trains(task)) == ({True}, {False})


def test_a_delta_loaded_beside_one_in_training_trains_only_when_it_is_named(tmp_path):
    backbone, lang, task = two_deltas()
    lang.freeze_module(exclude=["deltas", "classifier"])
    train(backbone)
    lang.save_finetuned(tmp_path)
    task.remove()
    lang.remove()

    task = LoraModel(backbone, name="task")
    task.freeze_module(exclude=["deltas", "pooler"])
    before = trainable(backbone)
    lang = AutoDeltaModel.from_finetuned(tmp_path, backbone, name="lang")
    assert trainable(backbone) == before
    assert (trains(lang), trains(task)) == ({False}, {True})
    lang.freeze_module()
    assert (trains(lang), trains(task)) == ({True}, {False})
    assert backbone.classifier.weight.requires_grad
    task.remove(), lang.remove()
    assert trains(AutoDeltaModel.from_finetuned(tmp_path, backbone)) == {True}


def test_a_named_module_does_not_include_other_deltas_inside():
    backbone, lang, task = two_deltas()
    task.freeze_module(exclude=["layer.0"])

    assert (trains(lang), trains(task)) == ({False}, {True})
    assert "bert.encoder.layer.0.output.dense.weight" in trainable(backbone)


def test_names_stored_in_a_delta_stay_valid_under_another_name(tmp_path):
    _, _, task = two_deltas()
    task.freeze_module(exclude=["deltas.task", "deltas.lang"])
    task.save_finetuned(tmp_path)

    loaded = AutoDeltaModel.from_finetuned(tmp_path, backbone_model=bert(), name="other")
    assert loaded.config.unfrozen_modules == ("deltas",)
    loaded.freeze_module()
    assert trains(loaded) == {True}


class Lookup(nn.Module):
    """A layer with plain integers among its parameters: a table of indices, an order and a mask, and a weight."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = 3
        self.weight = nn.Parameter(torch.ones(3))
        self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([True, False, True]), requires_grad=False)
        self.table = nn.Embedding.from_pretrained(torch.arange(3, dtype=torch.int32)[:, None])


def test_plain_integers_are_not_quantised_and_stay_as_they_are_beside_what_trains(tmp_path):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), Lookup())

    backbone = make()
    delta = LoraModel(backbone, modified_modules=["0"])
    delta.freeze_module(exclude=["deltas", "1"])
    assert {name for name in trainable(backbone) if not is_delta_name(name)} == {"1.weight"}
    with torch.no_grad():
        backbone[1].weight.fill_(5)
    delta.save_finetuned(tmp_path)
    again = make()
    AutoDeltaModel.from_finetuned(tmp_path, again)
    assert again[1].weight.tolist() == [5, 5, 5]
    assert again[1].order.tolist() == [2, 0, 1]

    for name in ("order", "mask", "table"):
        with pytest.raises(ConfigError, match=rf"1\.{name}.* cannot be trained: it holds whole numbers"):
            delta.freeze_module(exclude=["deltas", f"1.{name}"])
    assert {name for name in trainable(backbone) if not is_delta_name(name)} == {"1.weight"}
