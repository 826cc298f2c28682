import io
import json

import pytest
import torch
from safetensors.torch import load_file

from deltahub import (
    AdapterModel,
    AutoDeltaModel,
    BitFitModel,
    CompacterModel,
    IA3Model,
    LoraModel,
    LowRankAdapterModel,
    ParallelAdapterModel,
    PrefixModel,
    SoftPromptModel,
)
from deltahub.checkpoint import checkpoint
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats import delta_tensors
from deltahub.formats.backbone import Backbone
from deltahub.formats.opendelta import reading
from deltahub.formats.writing import Format, files_of
from tests.backbones import OPENDELTA, bert, gpt2, llama, logits_of, stir, t5, vit
from tests.formats.test_opendelta import backbone_of, facts_of, outputs_of

# Fields that a writer cannot know: the addresses have other forms, and the hash depends on the reader's release of transformers.
OTHER_FORM = {"modified_modules", "common_structure", "backbone_hash"}
FIXTURES = [
    "adapter__t5__layer_tuple_output",
    "bitfit__distilbert__custom",
    "compacter__gpt2__unfactorized_kron",
    "compacter__roberta__factorized_rule",
    "lora__bert__layernorm_classifier",
    "lora__t5__default",
    "low_rank_adapter__bert__default",
    "parallel_adapter__bert__default",
    "prefix__roberta__noreparam",
    "prefix__t5__reparam",
    "soft_prompt__bart__token_init",
    "soft_prompt__distilbert__token_init",
]


def put(content, folder):
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def tensors_in(content):
    return torch.load(io.BytesIO(content["pytorch_model.bin"]), weights_only=True)


@pytest.mark.parametrize("name", FIXTURES)
def test_a_checkpoint_of_the_original_is_written_as_the_original_saved_it(name, tmp_path):
    facts, source = facts_of(name), OPENDELTA / name / "delta"
    backbone = backbone_of(facts)
    saved = reading.read(source, backbone, allow_pickle=True)
    content = files_of(Format.OPENDELTA, saved, Backbone.of(saved, backbone))

    expected, found = torch.load(source / "pytorch_model.bin", weights_only=True), tensors_in(content)
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(tensor, found[key], rtol=1e-6, atol=1e-7)
    config = json.loads((source / "config.json").read_text())
    written = json.loads(content["config.json"])
    assert {k: v for k, v in config.items() if k not in OTHER_FORM} == {
        k: v for k, v in written.items() if k not in OTHER_FORM
    }
    AutoDeltaModel.from_finetuned(put(content, tmp_path), backbone_model=backbone, allow_pickle=True)
    recorded = load_file(OPENDELTA / name / "io.safetensors")
    torch.testing.assert_close(recorded["delta_out"], outputs_of(backbone, facts, recorded), rtol=1e-4, atol=1e-4)


def written(make, backbone, folder):
    """The files of a new delta with some values, and what the backbone computes with it."""
    delta = make(backbone)
    delta.freeze_module()
    stir(delta)
    found = logits_of(backbone)
    delta.save_finetuned(folder)
    saved = checkpoint.read(folder)
    content = files_of(Format.OPENDELTA, saved, Backbone.of(saved, backbone))  # the delta is on it
    delta.remove()
    return content, found


@pytest.mark.parametrize(
    ("make", "backbone", "options"),
    [
        (
            lambda b: LoraModel(b, 4, 8, rank_pattern={"0.attention.self.query": 2}, alpha_pattern={"value": 3.0}),
            bert,
            {"lora_r": 4},
        ),
        (lambda b: LoraModel(b, 4, 8, use_rslora=True), bert, {"lora_alpha": 16}),
        (lambda b: LoraModel(b, 2, unfrozen_modules=["deltas", "layer_norm@"]), bert, {"lora_r": 2}),
        (
            lambda b: AdapterModel(b, 4, "silu", bottleneck_pattern={"0.output.dense": 6}),
            bert,
            {"bottleneck_dim": 6, "non_linearity": "swish"},
        ),
        (
            lambda b: ParallelAdapterModel(b, 4, "gelu", scaled=4.0),
            gpt2,
            {"scaled": None, "non_linearity": "gelu_orig"},
        ),
        (
            lambda b: CompacterModel(b, reduction_factor=4, shared_phm_rule=True, shared_W_phm=True),
            t5,
            {"shared_phm_rule": False, "shared_W_phm": False},
        ),
        (lambda b: CompacterModel(b, reduction_factor=4, learn_phm=False), bert, {"learn_phm": False}),
        (
            lambda b: ParallelAdapterModel(b, 4, modified_modules=["up_proj", "down_proj"]),
            llama,
            {"bottleneck_dim": 4},
        ),
    ],
    ids=["ranks", "rslora", "norms", "widths", "scale", "shared", "fixed", "layers"],
)
def test_options_that_opendelta_lacks_are_written_as_equal_values(make, backbone, options, tmp_path):
    model = backbone()
    content, found = written(make, model, tmp_path / "delta")
    (tmp_path / "written").mkdir()
    AutoDeltaModel.from_finetuned(put(content, tmp_path / "written"), backbone_model=model, allow_pickle=True)

    assert json.loads(content["config.json"]).items() >= options.items()
    torch.testing.assert_close(found, logits_of(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "backbone", "why"),
    [
        (lambda b: LoraModel(b, use_dora=True), bert, "no DoRA.*--as-lora RANK"),
        (lambda b: LoraModel(b, use_bias=True), bert, "no bias of B.*--as-lora RANK"),
        (LoraModel, gpt2, "c_attn is a Conv1D"),
        (lambda b: LoraModel(b, modified_modules=["lm_head"], exclude_modules=[]), t5, "begins with lm_head"),
        (lambda b: AdapterModel(b, non_linearity="quick_gelu"), bert, "fails on the activation quick_gelu"),
        (lambda b: AdapterModel(b, modified_modules=["LayerNorm"], at_input=True), bert, "to the input of a LayerNorm"),
        (AdapterModel, vit, "a pass with tokens"),
        (ParallelAdapterModel, llama, "not known that a llama calls it"),
        (lambda b: LowRankAdapterModel(b, reduction_factor=4, low_rank_rank=2), bert, "this one has rank 2"),
        (BitFitModel, t5, "has no bias of its own"),
        (lambda b: PrefixModel(b, shift_positions=True), t5, "moves the positions"),
        (lambda b: PrefixModel(b, modified_modules=["EncDecAttention"]), t5, "a cross-attention"),
        (lambda b: SoftPromptModel(b, 3, other_expand_ids={"attention_mask": 1}), bert, "saves no other_expand_ids"),
        (IA3Model, bert, "OpenDelta has no IA3.*--as-lora RANK"),
    ],
)
def test_what_opendelta_would_compute_otherwise_is_refused(make, backbone, why, tmp_path):
    with pytest.raises(ConfigError, match=why):
        written(make, backbone(), tmp_path)


def test_modules_found_by_the_backbone_alone_ask_for_it(tmp_path):
    delta = ParallelAdapterModel(bert(), 4)
    stir(delta)
    delta.save_finetuned(tmp_path)
    saved = checkpoint.read(tmp_path)
    with pytest.raises(
        ConfigError, match=r"Only the backbone tells where each parallel adapter adds its output\. Pass"
    ):
        files_of(Format.OPENDELTA, saved, Backbone.of(saved, None))


def test_a_delta_without_one_of_its_tensors_is_refused(tmp_path):
    backbone = bert()
    delta = AdapterModel(backbone, 4)
    stir(delta)
    delta.save_finetuned(tmp_path)
    saved = checkpoint.read(tmp_path)
    del saved.tensors["bert.encoder.layer.0.output.dense.deltas.down_proj.bias"]
    with pytest.raises(CheckpointError, match=r"has no down_proj\.bias. Save the delta again"):
        files_of(Format.OPENDELTA, saved, Backbone.of(saved, backbone))


@pytest.mark.parametrize("form", [Format.ADAPTERS, Format.OPENDELTA])
def test_an_option_that_no_writer_knows_is_refused(form, tmp_path, monkeypatch):
    backbone = bert()
    delta = ParallelAdapterModel(backbone, 4, scaled=2.0)
    delta.save_finetuned(tmp_path)
    saved = checkpoint.read(tmp_path)
    monkeypatch.setitem(delta_tensors._KNOWN, "parallel_adapter", frozenset({"bottleneck_dim", "non_linearity"}))
    with pytest.raises(ConfigError, match=r"has scaled=2\.0, which is not written for \w+\. Keep"):
        files_of(form, saved, Backbone.of(saved, backbone))
