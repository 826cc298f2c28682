import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from deltahub import AutoDeltaModel
from deltahub.errors import CheckpointError, ConfigError, PickleRefusedError
from tests.backbones import built_once, untouched

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapters"
CLASSES = {
    "bert": transformers.BertForSequenceClassification,
    "gpt2": transformers.GPT2LMHeadModel,
    "llama": transformers.LlamaForCausalLM,
    "t5": transformers.T5ForConditionalGeneration,
}
KINDS = {
    "seq_bn_bert": "adapter",
    "double_seq_bn_t5": "adapter",
    "par_bn_llama": "parallel_adapter",
    "compacterpp_bert": "compacter",
    "lora_gpt2": "lora",
    "ia3_bert": "ia3",
    "prefix_gpt2": "prefix",
    "prefix_flat_t5": "prefix",
    "dora_bert": "lora",
    "mam_bert": "union",
    "seq_bn_inv_bert": "union",
    "loreft_bert": "reft",
    "reft_gpt2": "reft",  # the first and the last tokens with the same matrices
}


def backbone_of(name):
    transformers.utils.logging.disable_progress_bar()
    return backbone_in(name.rpartition("_")[2])


@built_once
def backbone_in(family):
    return CLASSES[family].from_pretrained(FIXTURES / "_backbones" / family, attn_implementation="eager").eval()


def logits_of(backbone, name):
    tensors = load_file(FIXTURES / name / "io.safetensors")
    inputs = {key.removeprefix("in."): tensor for key, tensor in tensors.items() if key.startswith("in.")}
    with torch.no_grad():
        return backbone(**inputs).logits, tensors["adapter.logits"]


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_gives_the_outputs_of_adapters_also_after_it_is_saved_here(name, tmp_path):
    backbone = backbone_of(name)
    delta = AutoDeltaModel.from_finetuned(FIXTURES / name / "adapter", backbone_model=backbone, allow_pickle=True)
    found, expected = logits_of(backbone, name)

    assert delta.delta_type == KINDS[name]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    delta.save_finetuned(tmp_path)
    delta.remove()
    AutoDeltaModel.from_finetuned(tmp_path, backbone_model=backbone)
    assert torch.equal(found, logits_of(backbone, name)[0])


@pytest.fixture
def folder(tmp_path):
    """A copy of a sequential bottleneck adapter."""
    shutil.copytree(FIXTURES / "seq_bn_bert" / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder, fields=(), **options):
    path = folder / "adapter_config.json"
    document = json.loads(path.read_text()) | dict(fields)
    document["config"] |= options
    path.write_text(json.dumps(document))


def refused(folder, error, match):
    backbone = backbone_of("bert")
    with untouched(backbone), pytest.raises(error, match=match):
        AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"architecture": "prompt_tuning"}, "gives other outputs"),
        ({"inv_adapter": "glow"}, "inv_adapter='glow': expected nice"),
        ({"inv_adapter": "nice", "inv_adapter_reduction_factor": 0}, "inv_adapter_reduction_factor=0: expected"),
        ({"use_gating": True}, "use_gating=True: a gate"),
        ({"ln_before": True}, "ln_before=True"),
        ({"original_ln_after": False}, "original_ln_after=False"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln='post_add'"),
        ({"new_field": 3}, "new_field=3: this field of adapters.1.3.0 is not supported"),
        ({"non_linearity": "unheard"}, "non_linearity='unheard'"),
        ({"scaling": "other"}, "scaling"),
    ],
)
def test_what_no_delta_computes_is_refused_by_field_and_value(folder, options, why):
    change(folder, **options)
    refused(folder, ConfigError, why)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "a union with configs=None; expected a list"),
        ({"configs": [{"architecture": "union"}]}, "architecture='union': this architecture"),
        ({"configs": [{}], "new_field": 3}, "union with new_field=3"),
        ({"configs": [{"use_gating": True}]}, "bottleneck with use_gating=True"),
        ({"configs": [{"output_adapter": True}] * 2}, "two methods of one architecture"),
    ],
)
def test_a_union_needs_methods_that_are_known(folder, config, why):
    change(folder, {"config": {"architecture": "union", **config}})
    refused(folder, ConfigError, why)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"mh_adapter": True}, "no tensors for encoder.layer.0.attention.output"),
        ({"leave_out": [0]}, "tensors for encoder.layer.0.output, where its config puts none"),
        ({"reduction_factor": 2.0}, "is .8, 32.; expected .16, 32."),
        ({"scaling": "learned"}, "no scaling for"),
        ({"inv_adapter": "nice", "inv_adapter_reduction_factor": 2}, "no F.0.weight for embeddings"),
    ],
)
def test_a_file_has_the_tensors_that_its_config_announces(folder, options, why):
    change(folder, **options)
    refused(folder, CheckpointError, why)


def test_an_adapter_for_another_family_or_release_is_refused(folder):
    change(folder, {"model_type": "roberta"})
    refused(folder, CheckpointError, "made for a roberta")
    change(folder, {"model_type": "bert", "version": "3.2.1"})
    refused(folder, ConfigError, "release '3.2.1'; expected adapters 1.x")


def test_a_pickle_is_opened_only_on_request(folder):
    (folder / "adapter.safetensors").unlink()
    shutil.copy(FIXTURES / "seq_bn_bert" / "pytorch_adapter.bin", folder)
    refused(folder, PickleRefusedError, "is a Python pickle")
    backbone = backbone_of("bert")
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, allow_pickle=True)
    found, expected = logits_of(backbone, "seq_bn_bert")
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_fixed_scale_and_widths_of_single_layers_count(folder):
    change(folder, scaling=2.0, reduction_factor={"1": 8.0, "default": 4.0})
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if ".layer.1." in name and name.endswith(("down.0.weight", "down.0.bias"))]:
        tensors[name] = tensors[name][:4].contiguous()
    up = next(name for name in tensors if ".layer.1." in name and name.endswith("up.weight"))
    tensors[up] = tensors[up][:, :4].contiguous()
    save_file(tensors, path)

    delta = AutoDeltaModel.from_finetuned(folder, backbone_model=backbone_of("bert"))
    own = {name.rpartition("encoder.")[2]: parameter for name, parameter in delta.named_parameters()}
    assert torch.equal(2 * tensors[up], own["layer.1.output.LayerNorm.deltas.up_proj.weight"])
    assert own["layer.0.output.LayerNorm.deltas.down_proj.weight"].shape == (8, 32)


def test_a_head_replaces_the_backbones_own_or_is_refused(folder):
    (folder / "head_config.json").write_text("{}")
    backbone = backbone_of("bert")
    save_file({"classifier.bias": backbone.classifier.bias.detach() + 1}, folder / "model_head.safetensors")
    before = backbone.classifier.bias.detach().clone()
    delta = AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)
    assert torch.equal(before + 1, backbone.classifier.bias)
    delta.detach()
    assert torch.equal(before, backbone.classifier.bias)

    save_file({"heads.task.1.weight": torch.ones(2, 32)}, folder / "model_head.safetensors")
    refused(folder, ConfigError, "prediction head with heads.task.1.weight .* no place")


def test_a_noreft_is_read_with_a_warning_that_it_may_be_a_direft(tmp_path, caplog):
    folder = tmp_path / "adapter"
    shutil.copytree(FIXTURES / "loreft_bert" / "adapter", folder)
    tensors = {
        name.replace("parametrizations.weight.original", "weight"): tensor
        for name, tensor in load_file(folder / "adapter.safetensors").items()
        if not name.endswith("0.base")
    }
    save_file(tensors, folder / "adapter.safetensors")
    change(folder, orthogonality=False)
    change(folder, output_reft=False)
    refused(folder, ConfigError, "output_reft=False: expected true")
    change(folder, output_reft=True)
    noreft = AutoDeltaModel.from_finetuned(folder, backbone_model=backbone_of("bert"))
    assert "If it is a DiReFT, load it with subtract_projection=False" in caplog.text
    direft = AutoDeltaModel.from_finetuned(folder, backbone_model=backbone_of("bert"), subtract_projection=False)
    assert (noreft.config.subtract_projection, direft.config.subtract_projection) == (True, False)


def test_a_loreft_whose_rows_became_zero_gives_the_outputs_of_adapters(tmp_path, caplog):
    folder = tmp_path / "adapter"
    shutil.copytree(FIXTURES / "loreft_bert" / "adapter", folder)
    tensors = load_file(folder / "adapter.safetensors")
    name = "bert.encoder.layer.0.reft_layer.refts.task.units.0.projection.parametrizations.weight.original"
    tensors[name][0, 0] *= 0.99  # as weight decay does; torch takes the integer part of the diagonal
    save_file(tensors, folder / "adapter.safetensors")
    delta = AutoDeltaModel.from_finetuned(folder, backbone_model=backbone_of("bert"))
    assert "some rows of R are zero" in caplog.text
    assert not delta.insertions["bert.encoder.layer.0"].prefix.projection[0].any()
    assert not delta.config.orthogonality


def composed(backbone, name):
    tensors = load_file(FIXTURES / "composition_bert" / "io.safetensors")
    with torch.no_grad():
        return backbone(tensors["in.input_ids"], attention_mask=tensors["in.attention_mask"]).logits, tensors[name]


def test_an_adapter_fusion_is_read_with_its_adapters(tmp_path):
    backbone = backbone_of("bert")
    folder = tmp_path / "composition"
    shutil.copytree(FIXTURES / "composition_bert", folder)
    delta = AutoDeltaModel.from_finetuned(folder / "fusion", backbone_model=backbone)
    found, expected = composed(backbone, "fuse.a_b_c")
    assert delta.delta_type == "fusion"
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    delta.save_finetuned(tmp_path / "delta")
    delta.remove()
    AutoDeltaModel.from_finetuned(tmp_path / "delta", backbone_model=backbone)
    assert torch.equal(found, composed(backbone, "fuse.a_b_c")[0])

    path = folder / "fusion" / "adapter_fusion_config.json"
    document = json.loads(path.read_text())
    for field, value in {"temperature": True, "residual_before": True, "query_before_ln": True, "new": 3}.items():
        path.write_text(json.dumps(document | {"config": document["config"] | {field: value}}))
        refused(folder / "fusion", ConfigError, f"fusion with {field}=")
    path.write_text(json.dumps(document))
    shutil.rmtree(folder / "adapter_b")
    refused(folder / "fusion", ConfigError, "b is neither in it nor beside it")
