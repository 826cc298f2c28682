"""Every delta type in every format: it gives the outputs of its source, or is refused with a way out."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from deltahub import AutoDeltaModel, BitFitModel, LoraModel, convert, deltas_of, export_peft
from deltahub.checkpoint.config import known_types
from deltahub.engine.fingerprint import fingerprint
from deltahub.errors import CheckpointError, ConfigError, FingerprintMismatch, StorageError, VerificationError
from deltahub.formats.writing import WRITERS, Format, write_folder
from tests.backbones import gpt2, llama, stir, t5
from tests.quantised import quantise

FORMATS = [*WRITERS, Format.MERGED]
WAY_OUT = re.compile(r"--as-lora|\b(Load|Keep|Use|Pass|Choose|Train|Convert|Write|Put)\b")
OPTIONS = {
    "adalora": {"init_r": 4, "target_r": 2},
    "vera": {"r": 4},
    "token_rows": {"token_indices": list(range(40))},
    "prefix": {"prefix_token_num": 3, "embed_dim": 4, "mid_dim": 5},
    "soft_prompt": {"soft_token_num": 3},
    "compacter": {"reduction_factor": 4, "hypercomplex_division": 2},
    "low_rank_adapter": {"reduction_factor": 4},
    "adapter": {"bottleneck_dim": 3},
    "parallel_adapter": {"bottleneck_dim": 3},
    "lora": {"lora_r": 4},
    "fusion": {
        "parts": [
            {"delta_type": "adapter", "bottleneck_dim": 3},
            {"delta_type": "compacter", "reduction_factor": 4, "hypercomplex_division": 2},
        ]
    },
    "union": {"parts": [{"delta_type": "lora", "lora_r": 2}, {"delta_type": "adapter", "bottleneck_dim": 3}]},
}
VARIANTS = {
    "dora": ("lora", {"lora_r": 4, "use_dora": True}),
    "rslora": ("lora", {"lora_r": 4, "use_rslora": True}),
    "lora_bias": ("lora", {"lora_r": 4, "use_bias": True}),
    "head": ("lora", {"lora_r": 4}),
}
KINDS = sorted({*known_types(), *VARIANTS})


def attached(model, kind):
    delta_type, options = VARIANTS.get(kind, (kind, OPTIONS.get(kind, {})))
    delta = AutoDeltaModel.from_config({"delta_type": delta_type, **options}, model)
    delta.freeze_module(exclude=["deltas", *(["lm_head"] if kind == "head" else [])])
    stir(delta)
    if kind == "head":
        with torch.no_grad():
            model.lm_head.weight.add_(0.1)
    return delta


@pytest.fixture(scope="module")
def backbone():
    return llama()


@pytest.fixture(scope="module")
def backbone_folder(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone") / "llama"
    backbone.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(backbone, tmp_path_factory):
    """Folder of a delta of each kind, by the kind."""
    folders = {}
    for kind in KINDS:
        delta = attached(backbone, kind)
        folders[kind] = tmp_path_factory.mktemp(kind) / "delta"
        delta.save_finetuned(folders[kind])
        if kind == "head":
            with torch.no_grad():
                backbone.lm_head.weight.sub_(0.1)
        delta.remove()
    return folders


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_acts_the_same_in_a_format_or_is_refused_with_a_way_out(backbone, saved, tmp_path, kind, form):
    result, refusal = None, ""
    try:
        result = convert(saved[kind], tmp_path / "out", form, backbone=backbone, verify=True)
    except ConfigError as error:
        refusal = str(error)

    assert bool(result) == (tmp_path / "out").exists()
    if result is None:
        assert WAY_OUT.search(refusal), refusal
    else:
        assert result.comparison.difference <= result.comparison.bound
        assert result.comparison.effect is None or result.comparison.bound < result.comparison.effect
    assert deltas_of(backbone) == {}


def test_what_peft_writes_comes_back_as_a_delta_that_names_its_source(backbone, saved, tmp_path):
    convert(saved["lora"], tmp_path / "adapter", "peft", backbone=backbone)
    convert(tmp_path / "adapter", tmp_path / "back", "deltahub", backbone=backbone, verify=True)

    (parent,) = json.loads((tmp_path / "back" / "delta_config.json").read_text())["parents"]
    assert (parent["relation"], parent["format"]) == ("converted", "peft")
    convert(tmp_path / "adapter", tmp_path / "again", "peft", backbone=backbone)
    assert parent["digest"] in (tmp_path / "again" / "README.md").read_text()


def test_the_card_of_a_delta_that_was_never_saved_names_no_digest(backbone, tmp_path):
    delta = attached(backbone, "lora")
    delta.export(tmp_path / "adapter", "peft", verify=True)
    delta.remove()

    assert "sha256" not in (tmp_path / "adapter" / "README.md").read_text()


def test_a_merged_model_loads_alone_with_the_tokenizer_of_its_backbone(backbone_folder, saved, tmp_path):
    (backbone_folder / "tokenizer.json").write_text("{}")
    convert(saved["lora"], tmp_path / "model", "merged", backbone=backbone_folder)
    (backbone_folder / "tokenizer.json").unlink()

    base = AutoModelForCausalLM.from_pretrained(backbone_folder)
    AutoDeltaModel.from_finetuned(saved["lora"], backbone_model=base)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(tmp_path / "model")(ids).logits, base(ids).logits)
    assert (tmp_path / "model" / "tokenizer.json").is_file()
    assert "Written by deltahub from the delta sha256:" in (tmp_path / "model" / "README.md").read_text()


def test_a_part_that_transformers_would_load_as_another_class_is_not_merged_alone(tmp_path):
    delta = attached(t5().encoder, "lora")
    with pytest.raises(ConfigError, match="A T5Stack cannot be saved"):
        delta.export(tmp_path / "out", "merged")


def test_what_a_format_cannot_hold_is_offered_as_a_lora(backbone, saved, tmp_path):
    with pytest.raises(ConfigError, match="--as-lora RANK or --energy SHARE"):
        convert(saved["weight_update"], tmp_path / "out", "peft")
    convert(saved["weight_update"], tmp_path / "out", "peft", backbone=backbone, energy=0.9, verify=True)
    with pytest.raises(ConfigError, match="cannot become a LoRA"):
        convert(saved["prefix"], tmp_path / "other", "peft", backbone=backbone, as_lora=4)
    assert deltas_of(backbone) == {}


@pytest.mark.parametrize("form", ["opendelta", "peft", "gguf"])
@pytest.mark.parametrize("kind", ["union", "invertible_adapter", "prefix"])
def test_no_way_out_is_named_that_is_refused(backbone, saved, tmp_path, kind, form):
    if (kind, form) == ("prefix", "opendelta"):
        return  # it has prefixes
    with pytest.raises(ConfigError) as caught:
        convert(saved[kind], tmp_path / "out", form, backbone=backbone)
    assert not re.search("as-lora|as_lora|merge|format peft", str(caught.value)), caught.value
    assert WAY_OUT.search(str(caught.value))


@pytest.mark.parametrize(("source", "to"), [(None, "out"), (3, "out"), ("lora", None)])
def test_a_source_or_a_target_that_is_no_path_is_one_clear_error(saved, source, to):
    with pytest.raises(ConfigError, match="Expected a folder"):
        convert(saved.get(source, source), to, "peft")


def test_a_pickle_is_refused_with_the_option_of_the_command(backbone, saved, tmp_path):
    convert(saved["lora"], tmp_path / "pickle", "opendelta", backbone=backbone)
    with pytest.raises(CheckpointError, match=r"repeat with --allow-pickle \(deltahub convert"):
        convert(tmp_path / "pickle", tmp_path / "out", "deltahub", backbone=backbone)
    convert(tmp_path / "pickle", tmp_path / "out", "deltahub", backbone=backbone, allow_pickle=True)


def test_a_quantised_backbone_is_not_merged_into(tmp_path):
    model = llama()
    delta = attached(model, "lora")
    model.is_quantized = True
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM is quantised.*--dequantise"):
        delta.export(tmp_path / "out", "merged")
    with pytest.raises(ConfigError, match="dequantise is for a merged model"):
        delta.export(tmp_path / "out", "peft", dequantise=torch.bfloat16)
    with pytest.raises(ConfigError, match="int8"):
        delta.export(tmp_path / "out", "merged", dequantise=torch.int8)


def test_a_merged_model_of_a_quantised_backbone_is_plain_and_its_error_is_told(tmp_path):
    model = quantise(llama(), "nf4")
    model.is_quantized = model.is_loaded_in_4bit = True
    model.hf_quantizer, model._weight_conversions = object(), ["of codes"]  # as transformers leaves them
    delta = attached(model, "lora")
    before = fingerprint(model).hash
    done = delta.export(tmp_path / "out", "merged", dequantise=torch.float32)
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")

    assert 0 <= done.comparison.difference < 1e-4 < done.comparison.effect
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert "quantization_config" not in (tmp_path / "out" / "config.json").read_text()
    assert fingerprint(model).hash == before
    assert delta.attached


def test_a_backbone_that_nobody_else_uses_is_merged_into_without_a_copy(
    backbone, backbone_folder, saved, tmp_path, monkeypatch
):
    expected = convert(saved["lora"], tmp_path / "copied", "merged", backbone=backbone)
    monkeypatch.setattr("deltahub.handle.exporting.merged_copy", lambda *_: pytest.fail("a second backbone"))
    convert(saved["lora"], tmp_path / "out", "merged", backbone=backbone_folder)
    files = [load_file(place / "model.safetensors") for place in (expected.folder, tmp_path / "out")]
    assert all(torch.equal(files[1][name], tensor) for name, tensor in files[0].items())


def test_a_merge_refuses_another_delta_that_acts_and_one_that_does_not(tmp_path):
    model = llama()
    first, second = LoraModel(model), BitFitModel(model)
    with pytest.raises(ConfigError, match="'bitfit' is attached"):
        first.export(tmp_path / "model", "merged")
    second.detach()
    first.detach()
    with pytest.raises(ConfigError, match="'lora' is detached"):
        first.export(tmp_path / "model", "merged")
    assert not (tmp_path / "model").exists()


def test_a_delta_without_effect_does_not_pass_verification(backbone, tmp_path):
    delta = LoraModel(backbone)
    with pytest.raises(CheckpointError, match="changes no output"):
        delta.export(tmp_path / "out", "peft", verify=True)
    delta.remove()
    assert not (tmp_path / "out").exists()


def test_a_file_that_gives_other_outputs_is_not_written(backbone, saved, tmp_path, monkeypatch):
    from deltahub.formats.peft import export

    def other(saved, backbone, files=export.files):
        tensors = {name: tensor * 1.5 for name, tensor in saved.tensors.items()}
        return files(type(saved)(**{**vars(saved), "tensors": tensors}), backbone)

    monkeypatch.setattr(export, "files", other)
    with pytest.raises(VerificationError, match="Nothing was written"):
        convert(saved["lora"], tmp_path / "out", "peft", backbone=backbone, verify=True)
    assert not (tmp_path / "out").exists()
    assert deltas_of(backbone) == {}


def test_outputs_that_are_not_numbers_are_refused(tmp_path):
    model = llama()
    delta = attached(model, "lora")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        delta.export(tmp_path / "out", "peft", verify=True)


def test_a_delta_of_another_backbone_is_refused(saved, tmp_path):
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    with pytest.raises(FingerprintMismatch):
        convert(saved["lora"], tmp_path / "out", "merged", backbone=model)
    assert deltas_of(model) == {}


@pytest.mark.parametrize("form", ["peft", "deltahub", "opendelta"])
@pytest.mark.parametrize("as_folder", [True, False])
def test_a_given_backbone_is_compared_even_where_its_values_are_not_needed(saved, tmp_path, form, as_folder):
    model = llama()
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    other = model
    if as_folder:
        other = tmp_path / "other"
        model.save_pretrained(other)
    with pytest.raises(FingerprintMismatch, match=r"1 of .* tensors have other values: model\.norm\.weight"):
        convert(saved["lora"], tmp_path / "out", form, backbone=other)
    with pytest.raises(FingerprintMismatch):
        export_peft(saved["lora"], tmp_path / "out", backbone=other)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="check_hash must be"):
        convert(saved["lora"], tmp_path / "out", form, backbone=other, check_hash="no")
    convert(saved["lora"], tmp_path / "out", form, backbone=other, check_hash="structure")
    convert(saved["lora"], tmp_path / "insisted", form, backbone=other, check_hash=False)
    convert(saved["lora"], tmp_path / "verified", form, backbone=other, check_hash=False, verify=True)
    convert(saved["lora"], tmp_path / "copied", "deltahub", backbone=other, check_hash=False, verify=True)


def test_a_folder_of_another_structure_is_refused_and_one_of_another_precision_accepted(backbone, saved, tmp_path):
    gpt2().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(FingerprintMismatch, match=r"incompatible.*missing"):
        convert(saved["lora"], tmp_path / "out", "peft", backbone=tmp_path / "gpt2")
    llama().double().save_pretrained(tmp_path / "double")
    convert(saved["lora"], tmp_path / "out", "peft", backbone=tmp_path / "double")


def test_the_error_of_a_computed_lora_is_told_for_each_module(backbone, saved, tmp_path):
    result = convert(saved["dora"], tmp_path / "out", "peft", backbone=backbone, as_lora=2, verify=True)

    assert {change.rank for change in result.changes} == {2}
    assert all(0 < change.error < 1 for change in result.changes)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["use_dora"] is False


def test_a_model_of_the_caller_trains_as_before(backbone, saved, tmp_path):
    model = llama().train()
    model.lm_head.requires_grad_(False)
    before = [(p.requires_grad, p.clone()) for p in model.parameters()]
    convert(saved["lora"], tmp_path / "out", "peft", backbone=model, verify=True)

    assert model.training
    assert all(p.requires_grad == g and torch.equal(p, v) for p, (g, v) in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("where", ["delta", "delta/out", "."])
def test_a_folder_is_not_written_into_its_source_or_around_it(saved, where):
    target = saved["lora"].parent / where
    with pytest.raises(CheckpointError, match="Choose"):
        convert(saved["lora"], target, "deltahub")


def test_a_folder_with_other_files_is_refused_and_one_of_the_same_format_replaced(saved, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="something other than a PEFT adapter"):
        convert(saved["lora"], tmp_path, "peft")
    out = tmp_path / "out"
    export_peft(saved["rslora"], out)
    convert(saved["lora"], out, "peft")
    assert json.loads((out / "adapter_config.json").read_text())["use_rslora"] is False
    (out / "README.md").write_text("my adapter")
    with pytest.raises(CheckpointError, match="was not written by a conversion"):
        convert(saved["lora"], out, "peft")
    (out / "README.md").write_text("Written by deltahub")
    (out / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        convert(saved["lora"], out, "peft")


def test_a_conversion_to_deltahub_is_repeated_into_its_folder_but_not_over_a_delta_trained_from_it(
    backbone, saved, tmp_path
):
    convert(saved["lora"], tmp_path / "adapter", "peft")
    for source, rank in ((tmp_path / "adapter", None), (saved["dora"], 2)):
        for _ in range(2):
            convert(source, tmp_path / f"{rank}", "deltahub", backbone=backbone, as_lora=rank, verify=True)
    for verify in (False, False, True):
        convert(saved["lora"], tmp_path / "copy", "deltahub", backbone=backbone, verify=verify)
    with pytest.raises(CheckpointError, match="would be lost"):
        convert(saved["dora"], tmp_path / "copy", "deltahub")

    delta = AutoDeltaModel.from_finetuned(tmp_path / "adapter", backbone_model=backbone)
    stir(delta)
    delta.save_finetuned(tmp_path / "None")
    delta.remove()
    assert "converted" in (tmp_path / "None" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="would be lost"):
        convert(tmp_path / "adapter", tmp_path / "None", "deltahub", backbone=backbone)


def test_a_backbone_and_a_delta_are_not_written_over(backbone_folder, saved):
    with pytest.raises(CheckpointError, match="would be lost"):
        convert(saved["lora"], backbone_folder, "merged", backbone=backbone_folder)
    with pytest.raises(CheckpointError, match="would be lost"):
        convert(saved["lora"], saved["dora"], "deltahub")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(OSError(28, "No space left on device"), StorageError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_full_disk_or_an_interrupt_leaves_no_folder(tmp_path, fault, expected):
    def fill(stage):
        (stage / "adapter_config.json").write_text("{}")
        raise fault

    with pytest.raises(expected):
        write_folder(tmp_path / "new", Format.PEFT, fill)
    assert not (tmp_path / "new").exists()


def test_a_source_of_another_library_needs_its_backbone(saved, tmp_path):
    convert(saved["lora"], tmp_path / "adapter", "peft")
    with pytest.raises(ConfigError, match="in the format peft, and its conversion needs the backbone"):
        convert(tmp_path / "adapter", tmp_path / "out", "deltahub")


def test_a_part_of_a_fused_layer_is_written_and_verified(tmp_path):
    model = gpt2()
    delta = attached(model, "lora")
    assert delta.export(tmp_path / "out", "peft", verify=True).comparison
