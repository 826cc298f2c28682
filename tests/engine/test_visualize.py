import json
from io import StringIO

import pytest
from rich.console import Console
from torch import nn
from transformers import BertConfig, BertModel

from deltahub import AdapterModel, LoraModel, Visualization
from deltahub.engine.drawing.folding import short_count
from deltahub.engine.structure.names import StructureMap
from tests.backbones import OPENDELTA, bert, original, untouched

GOLDEN = json.loads((OPENDELTA / "_tables" / "visualization.json").read_text())
KEEP = {"keep_non_params": True}
# The original keeps modules without parameters as well when it expands parameters; here that is said apart.
MODES = {"default": {}, "keep_non_params": KEEP, "expand_params": {"expand_params": True, **KEEP}}


def twelve_layers():
    """The model with many layers in the golden file."""
    return BertModel(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=12, num_attention_heads=2, intermediate_size=16)
    )


def text_of(tree):
    """A tree as plain text, one line for each node."""
    console = Console(file=StringIO(), width=400, color_system=None)
    console.print(tree)
    return console.file.getvalue()


def labels_of(tree):
    """A tree as nested labels with their markup."""
    return [tree.label, [labels_of(child) for child in tree.children]]


def graph(model, **options):
    return Visualization(model).structure_graph(printTree=False, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "bart", "bert12"])
def test_a_bare_model_is_drawn_as_the_original_draws_it(name, mode):
    model = twelve_layers() if name == "bert12" else original(name)
    expected = GOLDEN[f"{name}|{mode}"]["text"].replace("──  ", "── ")  # the blank before an expanded parameter
    text = text_of(graph(model, **MODES[mode])).replace(
        "BartScaledWordEmbedding", "Embedding"
    )  # its class in transformers 5

    assert expected.rstrip() == text.rstrip()


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "bert12"])
def test_colours_are_those_of_the_original(name):
    model = twelve_layers() if name == "bert12" else original(name)

    assert GOLDEN[f"{name}|default"]["labels"] == labels_of(graph(model))


def test_a_layer_with_a_delta_is_not_folded_into_those_without():
    backbone = original("bert")
    LoraModel(backbone, modified_modules=["0.attention.self.query"])
    expected = GOLDEN["bert_lora_layer0_only|default"]["text"].splitlines()
    place = next(i for i, line in enumerate(expected) if "lora" in line)
    indent = expected[place].partition("└")[0]
    expected[place : place + 1] = [
        f"{indent}└── deltas (Site)",
        f"{indent}    └── lora (LowRankUpdate) lora_A:[8, 32] lora_B:[32, 8]",
    ]

    assert expected == text_of(graph(backbone)).rstrip().splitlines()


def test_blocks_are_folded_by_runs_of_numbers():
    model = twelve_layers()
    AdapterModel(model, bottleneck_dim=2, modified_modules=[f"{i}.attention" for i in (0, 1, 2, 5)])

    text = text_of(graph(model))
    assert "── 0-2,5-5(BertLayer)" in text
    assert "── 3-4,6-11(BertLayer)" in text
    assert text.count("adapter (Bottleneck)") == 1


def test_trainable_frozen_and_delta_parameters_have_colours_of_their_own():
    model = bert()
    LoraModel(model, modified_modules=["0.attention.self.query"]).freeze_module(exclude=["deltas", "classifier"])

    labels = json.dumps(labels_of(graph(model)))
    assert "[rgb(175,0,255)]lora_A:[8, 16] [rgb(175,0,255)]lora_B:[16, 8]" in labels
    assert "[grey50]weight:[50, 16]" in labels
    assert "[white]classifier [green](Linear) [cyan]weight:[3, 16] [cyan]bias:[3]" in labels


def test_a_frozen_layer_is_not_folded_into_a_trainable_one():
    model = bert()
    model.bert.encoder.layer[0].attention.self.query.requires_grad_(requires_grad=False)

    assert "0-1(BertLayer)" not in text_of(graph(model))
    assert "key,value(Linear)" in text_of(graph(model))


def test_the_root_can_be_named_and_the_tree_is_printed_on_request(capsys):
    tree = Visualization(bert()).structure_graph(rootname="tiny", printTree=True)

    assert capsys.readouterr().out.startswith("tiny\n├── bert (BertModel)")
    assert tree.label == "[white]tiny"


def test_names_with_brackets_are_drawn_as_they_are():
    model = bert()
    model.add_module("[red]head", nn.Linear(1, 1))

    assert "── [red]head (Linear) weight:[1, 1] bias:[1]" in text_of(graph(model))


def test_common_names_take_the_place_of_real_ones():
    text = text_of(graph(bert(), common_structure=True))

    assert "── block (ModuleList)" in text
    assert "── q,k,v(Linear) weight:[16, 16] bias:[16]" in text
    assert "self (BertSelfAttention)" in text


def test_only_common_leaves_out_what_has_no_common_name():
    lines = text_of(graph(bert(), common_structure=True, only_common=True)).rstrip().splitlines()

    assert lines == [
        "root",
        "├── embeddings (Embedding) weight:[50, 16]",
        "└── encoder (BertEncoder)",
        "    └── block (ModuleList)",
        "        └── 0-1(BertLayer)",
        "            ├── attn (BertAttention)",
        "            │   ├── q,k,v,proj(Linear) weight:[16, 16] bias:[16]",
        "            │   └── layer_norm (LayerNorm) weight:[16] bias:[16]",
        "            ├── ff (BertIntermediate)",
        "            │   └── w1 (Linear) weight:[24, 16] bias:[24]",
        "            └── ff (BertOutput)",
        "                ├── w2 (Linear) weight:[16, 24] bias:[16]",
        "                └── layer_norm (LayerNorm) weight:[16] bias:[16]",
    ]


def test_deltas_are_seen_under_common_names_too():
    model = bert()
    LoraModel(model, modified_modules=["query"])

    text = text_of(graph(model, common_structure=True, only_common=True))
    assert "── lora (LowRankUpdate) lora_A:[8, 16] lora_B:[16, 8]" in text


def test_common_names_can_come_from_another_map():
    text = text_of(graph(bert(), common_structure=True, mapping=StructureMap()))

    assert text == text_of(graph(bert()))


def test_counts_tell_what_one_of_the_folded_holds():
    model = bert()
    one = sum(p.numel() for p in model.bert.encoder.layer[0].parameters())

    text = text_of(graph(model, counts=True))
    assert f"0-1(BertLayer) 2 × {one / 1000:.2f}K" in text
    assert "── encoder (BertEncoder) 3.92K" in text
    assert "classifier (Linear) weight" in text  # a leaf's shapes say it


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (768, "768"),
        (999, "999"),
        (1000, "1.00K"),
        (590_592, "591K"),
        (999_499, "999K"),
        (999_500, "1.00M"),
        (9_996, "10.0K"),
        (85_054_464, "85.1M"),
        (6_738_415_616, "6.74B"),
        (671_026_419_200, "671B"),
    ],
)
def test_counts_have_three_digits(number, text):
    assert text == short_count(number)


def test_drawing_leaves_the_model_alone():
    model = bert()

    with untouched(model):
        graph(model, **MODES["expand_params"])
