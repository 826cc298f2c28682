import json

import pytest
import torch
import transformers
from safetensors.torch import load, load_file

from deltahub import (
    AdapterModel,
    AutoDeltaModel,
    BitFitModel,
    CompacterModel,
    IA3Model,
    LoraModel,
    ParallelAdapterModel,
    PrefixModel,
    SoftPromptModel,
)
from deltahub.checkpoint import checkpoint
from deltahub.errors import ConfigError
from deltahub.formats.adapters import reading
from deltahub.formats.backbone import Backbone
from deltahub.formats.writing import Format, files_of
from tests.backbones import stir
from tests.formats.test_adapters import FIXTURES, backbone_of, logits_of

NETWORK = {"prefix_gpt2"}  # written as the keys and values that the network computes
UNKNOWN = {"model_name", "name"}  # a delta keeps neither


def put(content, folder):
    folder.mkdir(exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "name",
    ["compacterpp_bert", "double_seq_bn_t5", "ia3_bert", "lora_gpt2", "par_bn_llama", "prefix_gpt2", "seq_bn_bert"],
)
def test_an_adapter_is_written_as_adapters_saved_it(name, tmp_path):
    backbone, source = backbone_of(name), FIXTURES / name / "adapter"
    saved = reading.read(source, backbone, allow_pickle=True)
    content = files_of(Format.ADAPTERS, saved, Backbone.of(saved, backbone))

    if name not in NETWORK:
        expected = load_file(source / "adapter.safetensors")
        found = {key.replace(".delta.", ".task."): t for key, t in load(content["adapter.safetensors"]).items()}
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
        config = json.loads((source / "adapter_config.json").read_text())
        written = json.loads(content["adapter_config.json"])
        assert {k: v for k, v in config.items() if k not in UNKNOWN} == {
            k: v for k, v in written.items() if k not in UNKNOWN
        }
    AutoDeltaModel.from_finetuned(put(content, tmp_path / "written"), backbone_model=backbone)
    outputs, recorded = logits_of(backbone, name)
    assert (outputs - recorded).abs().max() <= 1e-5 * recorded.abs().max()


def outputs_of(backbone):
    ids = {name: torch.tensor([[5, 6, 7, 8]]) for name in ("input_ids", "decoder_input_ids")}
    with torch.no_grad():
        return backbone(**(ids if backbone.config.is_encoder_decoder else {"input_ids": ids["input_ids"]})).logits


def written(make, backbone, folder):
    """The files of a new delta with some values, and what the backbone computes with it."""
    delta = make(backbone)
    delta.freeze_module()
    stir(delta)
    found = outputs_of(backbone)
    delta.save_finetuned(folder)
    delta.remove()
    saved = checkpoint.read(folder)
    return files_of(Format.ADAPTERS, saved, Backbone.of(saved, backbone)), found


def with_head(backbone):
    delta = LoraModel(backbone, 2, unfrozen_modules=["deltas", "classifier"])
    with torch.no_grad():
        backbone.classifier.weight.add_(0.1)
    return delta


@pytest.mark.parametrize(
    ("make", "family", "options"),
    [
        (lambda b: AdapterModel(b, 5, "gelu_orig"), "bert", {"original_ln_before": False, "non_linearity": "gelu"}),
        (
            lambda b: AdapterModel(b, 4, bottleneck_pattern={"1.output.dense": 7}),
            "bert",
            {"mh_adapter": True, "output_adapter": True},
        ),
        (lambda b: AdapterModel(b, 4, modified_modules=["1.mlp.down_proj"]), "llama", {"leave_out": [0]}),
        (
            lambda b: AdapterModel(b, 4, modified_modules=["DenseReluDense.wo"], exclude_modules=["encoder"]),
            "t5",
            {"leave_out": [0, 1], "output_adapter": True},
        ),
        (
            lambda b: ParallelAdapterModel(
                b, 4, scaled=3.0, modified_modules=["post_attention_layernorm", "down_proj"]
            ),
            "llama",
            {"scaling": 3.0},
        ),
        (
            lambda b: CompacterModel(b, reduction_factor=4, shared_W_phm=True, use_bias_up_sampler=False),
            "t5",
            {"shared_W_phm": False, "phm_bias": True},
        ),
        (
            lambda b: LoraModel(b, 4, 8, modified_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2}),
            "llama",
            {"r": 4, "attn_matrices": ["q"], "output_lora": True, "intermediate_lora": False},
        ),
        (lambda b: LoraModel(b, modified_modules=["c_attn"]), "gpt2", {"attn_matrices": ["q", "k", "v"]}),
        (lambda b: IA3Model(b, modified_modules=["k", "v", "wi"], feedforward_modules=[]), "t5", {"r": 1}),
        (with_head, "bert", {"r": 2}),
        (lambda b: PrefixModel(b, modified_modules=["1.self_attn"]), "llama", {"leave_out": [0], "flat": True}),
        (
            lambda b: PrefixModel(b, 3, modified_modules=["SelfAttention", "EncDecAttention"], shift_keys=True),
            "t5",
            {"cross_prefix": True, "prefix_length": 3},
        ),
    ],
    ids=[
        "houlsby",
        "widths",
        "layer",
        "decoder",
        "spans",
        "compacter",
        "ranks",
        "fused",
        "ia3",
        "head",
        "prefix",
        "stacks",
    ],
)
def test_a_delta_on_the_places_of_adapters_gives_the_same_outputs_from_its_files(make, family, options, tmp_path):
    backbone = backbone_of(f"_{family}")
    content, found = written(make, backbone, tmp_path / "delta")
    AutoDeltaModel.from_finetuned(put(content, tmp_path / "written"), backbone_model=backbone)

    assert json.loads(content["adapter_config.json"])["config"].items() >= options.items()
    torch.testing.assert_close(found, outputs_of(backbone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "family", "why"),
    [
        (lambda b: AdapterModel(b, 4, modified_modules=["query"]), "bert", "no such choice is these modules of a bert"),
        (
            lambda b: AdapterModel(b, 4, modified_modules=["0.attention.output.dense", "1.output.dense"]),
            "bert",
            "no such choice",
        ),
        (lambda b: AdapterModel(b, 4, "prelu"), "bert", "does not have the activation prelu"),
        (lambda b: LoraModel(b, modified_modules=["c_proj"]), "gpt2", "no such choice is these layers of a gpt2"),
        (LoraModel, "t5", "matrices of every attention"),  # not in cross-attention
        (lambda b: LoraModel(b, use_dora=True), "bert", "the same DoRA.*--as-lora RANK"),
        (
            lambda b: LoraModel(b, 2, unfrozen_modules=["deltas", "pooler"]),
            "bert",
            "also trained bert.pooler.dense.bias",
        ),
        (IA3Model, "bert", "scales the input of .*--as-lora RANK"),
        (IA3Model, "gpt2", "is q, k and v in one"),
        (PrefixModel, "t5", "counts the positions of the text in another way"),
        (BitFitModel, "bert", "adapters trains no biases"),
        (lambda b: SoftPromptModel(b, 3), "bert", "gives other outputs than a soft prompt here"),
    ],
)
def test_what_adapters_would_compute_otherwise_is_refused(make, family, why, tmp_path):
    with pytest.raises(ConfigError, match=why):
        written(make, backbone_of(f"_{family}"), tmp_path)


def test_the_card_of_a_prefix_says_how_to_load_the_model(tmp_path):
    content, _ = written(lambda b: PrefixModel(b, 3), backbone_of("_gpt2"), tmp_path)
    assert 'attn_implementation="eager"' in content["README.md"].decode()


def test_a_prefix_on_distilbert_has_the_name_that_adapters_gives_it(tmp_path):
    config = transformers.DistilBertConfig(vocab_size=20, dim=32, hidden_dim=32, n_layers=2, n_heads=2)
    backbone = transformers.DistilBertForSequenceClassification(config).eval()
    content, found = written(lambda b: PrefixModel(b, 3, reparameterize=False), backbone, tmp_path / "delta")

    assert list(load(content["adapter.safetensors"])) == [
        "distilbert.prefix_tuning.prefix_tunings.delta.self.control_trans"
    ]
    AutoDeltaModel.from_finetuned(put(content, tmp_path / "written"), backbone_model=backbone)
    torch.testing.assert_close(found, outputs_of(backbone), rtol=1e-5, atol=1e-5)


def test_without_the_backbone_the_writer_asks_for_it(tmp_path):
    delta = AdapterModel(backbone_of("_bert"), 4)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path)
    saved = checkpoint.read(tmp_path)
    with pytest.raises(ConfigError, match=r"Only the backbone tells where adapters puts its modules\. Pass"):
        files_of(Format.ADAPTERS, saved, Backbone.of(saved, None))
