import pytest
from torch import nn

from deltahub import AdapterModel, LoraModel
from deltahub.deltas import AdapterConfig, BitFitModel, LoraConfig, ParallelAdapterConfig, ParallelAdapterModel
from deltahub.errors import ConfigError
from deltahub.handle.base import delta_classes
from deltahub.picker.preview import Preview
from deltahub.picker.tree import first_names, tree_json
from tests.backbones import BACKBONES, bert, gpt2, untouched

QUERIES = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
DELTAS = {"lora": (LoraModel, LoraConfig(lora_r=4)), "adapter": (AdapterModel, AdapterConfig(bottleneck_dim=3))}


def answer(backbone, names, delta_type="lora", deltas=DELTAS):
    preview = Preview(backbone, deltas)
    return preview.answer(preview.choice(names, delta_type))


def test_a_preview_shows_where_the_delta_acts_and_what_it_trains():
    told = answer(bert(), QUERIES)

    assert told == {
        "line": 'modified_modules=["query"]',
        "chosen": 2,
        "places": [{"pattern": "bert.encoder.layer.0-1.attention.self.query", "count": 2}],
        "modules": 2,
        "parameters": sum(p.numel() for p in LoraModel(bert(), lora_r=4, modified_modules=["query"]).parameters()),
    }


def test_a_method_that_acts_inside_the_chosen_modules_says_so():
    told = answer(bert(), ["bert.pooler"], "bitfit", {"bitfit": (BitFitModel, BitFitModel.config_class())})

    assert told["places"] == [{"pattern": "bert.pooler.dense", "count": 1}]
    assert told["parameters"] == 16


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["bert.encoder.layer.0"], "bert.encoder.layer.0 is a BertLayer; expected a Linear"),
        (["bert.encoder.layer"], "bert.encoder.layer is a ModuleList"),
        ([], "Nothing chosen yet."),
    ],
)
def test_impossible_settings_are_one_clear_error(names, why):
    told = answer(bert(), names)

    assert told["refusal"].startswith(why)
    assert "parameters" not in told


def test_a_name_or_type_that_the_page_cannot_know_is_refused():
    preview = Preview(bert(), DELTAS)

    for names, delta_type in ((["bert.nothing"], "lora"), (QUERIES, "nothing"), ([""], "lora")):
        with pytest.raises(ConfigError, match="is unknown"):
            preview.choice(names, delta_type)


@pytest.mark.parametrize(
    "kind", sorted(delta_classes().keys() - {"fusion", "token_rows", "union"})
)  # others need options
@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=list(BACKBONES))
def test_previews_and_trees_leave_the_backbone_alone(backbone, kind):
    model, method = backbone(), delta_classes()[kind]
    linear = next(name for name, module in model.named_modules() if isinstance(module, nn.Linear))

    with untouched(model):
        told = answer(model, [linear], kind, {kind: (method, method.config_class())})
        tree_json(model)
    assert told["chosen"] == 1


def test_a_shared_module_counts_under_the_name_that_addresses_know():
    model = bert()
    model.again = model.classifier
    choice = Preview(model, DELTAS).choice(["again", "classifier"], "lora")

    assert choice.names == ("classifier",)
    assert first_names(model)["again"] == "classifier"
    assert len(LoraModel(model, modified_modules=choice.addresses).insertions) == 1


def test_the_tree_shows_common_names_sizes_and_folded_modules():
    tree = tree_json(bert())
    layer = tree["children"][0]["children"][1]["children"][0]["children"][0]

    assert tree["title"] == "BertForSequenceClassification"
    assert (layer["names"], layer["kinds"]) == (["0", "1"], ["BertLayer"] * 2)
    assert layer["size"] == sum(p.numel() for p in bert().bert.encoder.layer[0].parameters())
    assert tree["common"][QUERIES[1]] == "attn.q"
    assert tree["total"] == sum(p.numel() for p in bert().parameters())


def test_a_fused_layer_is_chosen_whole():
    told = answer(gpt2(), ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"])

    assert told["line"] == 'modified_modules=["c_attn"]'


def test_a_method_whose_addresses_are_pairs_acts_beside_each_module_that_is_chosen():
    deltas = {"parallel_adapter": (ParallelAdapterModel, ParallelAdapterConfig())}
    told = answer(bert(), QUERIES, "parallel_adapter", deltas)

    assert (told["line"], told["modules"]) == ('modified_modules=["query", "query"]', 2)


def test_deltas_that_are_there_are_shown_and_cannot_be_chosen():
    model = bert()
    LoraModel(model, modified_modules=["pooler.dense"])
    (pooler,) = tree_json(model)["children"][0]["children"][2]["children"]

    assert pooler["children"][0]["delta"]
    with pytest.raises(ConfigError, match="is unknown"):
        answer(model, ["bert.pooler.dense.deltas.lora"])
