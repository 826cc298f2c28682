"""A delta written for PEFT gives in PEFT the outputs that it gives here."""

from __future__ import annotations

import json
import re

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from deltahub import (
    AdapterModel,
    BitFitModel,
    CompacterModel,
    IA3Model,
    LayerNormModel,
    LoraModel,
    LowRankAdapterModel,
    ParallelAdapterModel,
    PrefixModel,
    SoftPromptModel,
    export_peft,
)
from deltahub.checkpoint.checkpoint import describe
from deltahub.errors import CheckpointError, ConfigError, FingerprintMismatch
from deltahub.formats.peft.export import serving_notes
from deltahub.hub.hub import Hub
from tests.backbones import bert, gpt2, llama, logits_of, stir, t5, train
from tests.checkpoints import content_of
from tests.formats.architectures import distilbert, numbered, square_gpt2, whisper

# PEFT asks transformers for what it renames.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),  # it says so of every norm
    pytest.mark.filterwarnings(
        "ignore:Model has .tie_word_embeddings=True.:UserWarning"
    ),  # merging there would go wrong
]
TOLERANCE = 1e-5  # relative to the largest logit
ACTS = 1e-3  # what a delta changes at least


@pytest.fixture
def written(tmp_path):
    """Trains a delta on a backbone, writes it for PEFT, and gives the backbone's logits with it, the folder and the config."""

    def write(make, kind, *, exclude=("deltas",), steps=0, given=False, **options):
        backbone = make()
        if given:
            backbone.save_pretrained(tmp_path / "backbone")
        delta = kind(backbone, **options)
        delta.freeze_module(exclude=list(exclude))
        stir(delta)
        if steps:
            train(backbone, steps)
        delta.save_finetuned(tmp_path / "delta")
        folder = export_peft(tmp_path / "delta", tmp_path / "peft", backbone=tmp_path / "backbone" if given else None)
        return logits_of(backbone), folder, json.loads((folder / "adapter_config.json").read_bytes())

    return write


def far(expected, actual):
    return ((expected - actual).abs().max() / expected.abs().max()).item()


def in_peft(make, folder):
    """The logits of a fresh backbone with the adapter, as PEFT loads it; every tensor of the file must be used."""
    backbone = make()
    before = logits_of(backbone)
    model = peft.PeftModel.from_pretrained(backbone, folder).eval()
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = peft.load_peft_weights(folder)
    result = peft.set_peft_model_state_dict(model, loaded)
    assert {*result.unexpected_keys} <= {"prompt_embeddings"}  # which PEFT loads by itself
    others = ("modules_to_save", "prompt_encoder")
    assert not [name for name in result.missing_keys if "default" in name and not any(map(name.__contains__, others))]
    assert loaded.keys() == saved.keys()
    return logits_of(model), before


LORAS = [
    (bert, {}),
    (bert, {"use_rslora": True, "lora_alpha": 3}),
    (bert, {"use_dora": True}),
    (bert, {"lora_dropout": 0.1, "lora_r": 3, "lora_alpha": 5}),
    (bert, {"modified_modules": ["query", "output.dense", "word_embeddings"]}),
    (t5, {}),
    (t5, {"modified_modules": ["q", "wi", "wo"], "use_dora": True}),
    (llama, {"modified_modules": ["q_proj", "down_proj", "gate_proj"]}),
    (llama, {"modified_modules": ["model.layers.0.self_attn.q_proj"]}),
    (llama, {"modified_modules": ["q_proj", "embed_tokens"]}),
    (gpt2, {"modified_modules": ["c_fc", "mlp.c_proj"]}),
    (gpt2, {"modified_modules": ["c_attn"], "use_dora": True}),
]


@pytest.mark.parametrize(
    ("make", "options"), LORAS, ids=lambda it: it.__name__ if callable(it) else "-".join(map(str, it))
)
def test_a_lora_gives_the_same_outputs_in_peft(written, make, options):
    expected, folder, config = written(make, LoraModel, **options)
    found, before = in_peft(make, folder)

    assert far(expected, found) < TOLERANCE
    assert far(expected, before) > ACTS
    assert config["peft_type"] == "LORA"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_alpha": 5},
        {"use_rslora": True},
        {"modified_modules": ["attn.q", "mlp.c_fc"]},
        {"modified_modules": ["attn.k"]},
    ],
    ids="-".join,
)
def test_a_lora_on_parts_of_a_fused_layer_is_one_of_the_whole_layer(written, options):
    expected, folder, config = written(gpt2, LoraModel, given=True, **options)
    found, before = in_peft(gpt2, folder)

    assert far(expected, found) < TOLERANCE
    assert far(expected, before) > ACTS
    assert (config["rank_pattern"], config["use_rslora"]) == ({}, False) or config["r"] == 8


def test_a_part_of_a_fused_layer_needs_the_backbone(written):
    with pytest.raises(
        ConfigError, match=r"acts on the q, v rows of transformer\.h\.0\.attn\.c_attn alone.*--backbone"
    ):
        written(gpt2, LoraModel)


def test_another_backbone_has_not_the_parts(written, tmp_path):
    written(gpt2, LoraModel, given=True)
    llama().save_pretrained(tmp_path / "other")
    with pytest.raises(FingerprintMismatch, match="incompatible"):
        export_peft(tmp_path / "delta", tmp_path / "new", backbone=tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"has no transformer\.h\.0\.attn\.c_attn"):
        export_peft(tmp_path / "delta", tmp_path / "new", backbone=tmp_path / "other", check_hash=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("make", "given"), [(bert, False), (t5, False), (llama, False), (gpt2, True)])
def test_ia3_gives_the_same_outputs_in_peft(written, make, given):
    expected, folder, config = written(make, IA3Model, given=given)
    found, before = in_peft(make, folder)

    assert far(expected, found) < TOLERANCE
    assert far(expected, before) > ACTS
    assert config["feedforward_modules"]
    assert set(config["feedforward_modules"]) < set(config["target_modules"])


def test_ia3_on_layers_by_their_real_names_needs_no_guess(written):
    expected, folder, config = written(bert, IA3Model, modified_modules=["key", "value"], feedforward_modules=["value"])
    found, _ = in_peft(bert, folder)

    assert far(expected, found) < TOLERANCE
    assert all(name.endswith("value") for name in config["feedforward_modules"])


@pytest.mark.parametrize("make", [bert, t5, llama, gpt2])
def test_layer_norm_tuning_gives_the_same_outputs_in_peft(written, make):
    expected, folder, _ = written(make, LayerNormModel, given=True)
    found, before = in_peft(make, folder)

    assert far(expected, found) < TOLERANCE
    assert far(expected, before) > ACTS


def test_layer_norm_tuning_needs_the_very_backbone(written, tmp_path):
    with pytest.raises(ConfigError, match=r"PEFT keeps .* as a whole.*--backbone"):
        written(bert, LayerNormModel)
    bert(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(FingerprintMismatch, match="have other values"):
        export_peft(tmp_path / "delta", tmp_path / "new", backbone=tmp_path / "other")
    export_peft(tmp_path / "delta", tmp_path / "new", backbone=tmp_path / "other", check_hash=False)


@pytest.mark.parametrize("make", [t5, llama, gpt2])
def test_a_soft_prompt_gives_the_same_outputs_in_peft(written, make):
    expected, folder, config = written(make, SoftPromptModel, soft_token_num=3)
    found, before = in_peft(make, folder)

    assert far(expected, found) < TOLERANCE
    assert far(expected[:, -before.shape[1] :], before) > ACTS
    assert config["num_virtual_tokens"] == 3


def test_a_soft_prompt_with_a_trained_head_gives_the_same_outputs_in_peft(written):
    expected, folder, _ = written(bert, SoftPromptModel, soft_token_num=3, exclude=("deltas", "classifier"), steps=2)
    found, _ = in_peft(bert, folder)

    assert far(expected, found) < TOLERANCE


@pytest.mark.parametrize("exclude", [("classifier",), ("classifier", "LayerNorm"), ("pooler", "classifier")])
def test_other_trained_parameters_are_saved_too(written, exclude):
    expected, folder, config = written(bert, LoraModel, exclude=("deltas", *exclude), steps=2)
    found, _ = in_peft(bert, folder)

    assert far(expected, found) < TOLERANCE
    assert "classifier" in config["modules_to_save"]


def test_trained_biases_of_adapted_layers_go_with_it(written):
    expected, folder, config = written(bert, LoraModel, exclude=("deltas", "query.bias"), steps=2)
    found, _ = in_peft(bert, folder)

    assert far(expected, found) < TOLERANCE
    assert (config["bias"], config["modules_to_save"]) == ("all", None)


def test_a_module_that_peft_cannot_replace_is_refused(written):
    with pytest.raises(ConfigError, match=r"trained .*query\.weight, which is of a layer that the delta adapts"):
        written(bert, LoraModel, exclude=("deltas", "query"))


def test_possibly_shared_weights_need_the_backbone_and_are_written_for_each_layer(written):
    with pytest.raises(
        ConfigError, match=r"trained shared\.weight, and only the backbone tells .* share it.*--backbone"
    ):
        written(t5, LoraModel, exclude=("deltas", "shared"))
    expected, folder, config = written(t5, LoraModel, exclude=("deltas", "shared"), steps=1, given=True)

    assert far(expected, in_peft(t5, folder)[0]) < TOLERANCE
    assert config["modules_to_save"] == ["decoder.embed_tokens", "encoder.embed_tokens", "lm_head", "shared"]


def test_an_embedding_that_no_layer_shares_needs_no_backbone(written):
    expected, folder, config = written(llama, LoraModel, exclude=("deltas", "embed_tokens", "lm_head"), steps=1)

    assert far(expected, in_peft(llama, folder)[0]) < TOLERANCE
    assert config["modules_to_save"] == ["lm_head", "model.embed_tokens"]


def test_half_of_a_trained_layer_takes_its_other_half_from_the_backbone(written):
    with pytest.raises(ConfigError, match="PEFT keeps classifier as a whole"):
        written(bert, LoraModel, exclude=("deltas", "classifier.weight"), steps=1)
    expected, folder, config = written(bert, LoraModel, exclude=("deltas", "classifier.weight"), steps=1, given=True)

    assert far(expected, in_peft(bert, folder)[0]) < TOLERANCE
    assert config["modules_to_save"] == ["classifier"]


def test_layers_that_peft_also_matches_are_written_with_backbone_values(written):
    expected, folder, _ = written(distilbert, LoraModel, exclude=("deltas", "[r]classifier"), steps=1, given=True)

    assert far(expected, in_peft(distilbert, folder)[0]) < TOLERANCE
    assert "base_model.model.pre_classifier.weight" in load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("patterns", "exclude", "names"),
    [
        (["tail.2"], [], ["tail.2"]),
        (["2"], ["tail"], "2"),
    ],  # as a list "2" would mean tail.2 too: a pattern for the whole name
)
def test_layers_are_named_by_numbers_only_where_these_mean_no_others(tmp_path, patterns, exclude, names):
    delta = LoraModel(numbered(), modified_modules=patterns, exclude_modules=exclude)
    delta.freeze_module()
    delta.save_finetuned(tmp_path / "delta")
    folder = export_peft(tmp_path / "delta", tmp_path / "peft")
    assert json.loads((folder / "adapter_config.json").read_bytes())["target_modules"] == names


def test_ia3_at_the_input_of_a_square_layer_stays_at_its_input(written):
    both = ["attention.output.dense"]
    expected, folder, config = written(bert, IA3Model, modified_modules=both, feedforward_modules=both)
    assert far(expected, in_peft(bert, folder)[0]) < TOLERANCE
    common = {"modified_modules": ["attn.proj", "attn.k"], "feedforward_modules": ["attn.proj"]}
    expected, folder, config = written(bert, IA3Model, **common)
    assert far(expected, in_peft(bert, folder)[0]) < TOLERANCE
    assert all(name.endswith("output.dense") for name in config["feedforward_modules"])


def test_a_square_embedding_is_an_embedding(written):
    expected, folder, config = written(square_gpt2, LoraModel, modified_modules=["wpe", "attn.c_proj"])

    assert far(expected, in_peft(square_gpt2, folder)[0]) < TOLERANCE
    assert config["target_modules"] == [f"transformer.h.{block}.attn.c_proj" for block in (0, 1)] + ["transformer.wpe"]


def test_a_layer_norm_of_files_of_older_names_is_found(written, tmp_path):
    _, folder, _ = written(bert, LayerNormModel, given=True)
    path = tmp_path / "backbone" / "model.safetensors"
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): t for name, t in load_file(path).items()}
    save_file({name.replace("LayerNorm.bias", "LayerNorm.beta"): t for name, t in old.items()}, path, {"format": "pt"})

    again = export_peft(tmp_path / "delta", tmp_path / "again", backbone=tmp_path / "backbone")
    assert content_of(again) == content_of(folder)


def test_the_precision_of_the_backbones_file_does_not_count(tmp_path):
    bert().bfloat16().save_pretrained(tmp_path / "backbone")
    backbone = type(bert()).from_pretrained(tmp_path / "backbone", dtype=torch.float32)
    delta = LayerNormModel(backbone)
    delta.freeze_module()
    stir(delta)
    delta.save_finetuned(tmp_path / "delta")
    folder = export_peft(tmp_path / "delta", tmp_path / "peft", backbone=tmp_path / "backbone")
    assert {t.dtype for t in load_file(folder / "adapter_model.safetensors").values()} == {torch.float32}


def test_a_prompt_of_a_model_with_a_head_takes_the_head_from_the_backbone(written):
    with pytest.raises(ConfigError, match="PEFT keeps classifier as a whole"):
        written(bert, SoftPromptModel, soft_token_num=3)
    expected, folder, _ = written(bert, SoftPromptModel, soft_token_num=3, given=True)

    assert far(expected, in_peft(bert, folder)[0]) < TOLERANCE


def test_trained_embeddings_beside_a_prompt_are_refused(written):
    with pytest.raises(ConfigError, match=r"PEFT uses the backbone's own embeddings"):
        written(llama, SoftPromptModel, soft_token_num=3, exclude=("deltas", "embed_tokens"))


def test_a_task_whose_model_takes_other_inputs_is_left_out(written):
    expected, folder, config = written(whisper, LoraModel, modified_modules=["q_proj"])
    assert config["task_type"] is None
    assert far(expected, in_peft(whisper, folder)[0]) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (AdapterModel, "no bottleneck adapters"),
        (ParallelAdapterModel, "no parallel adapters"),
        (LowRankAdapterModel, "no low-rank adapters"),
        (CompacterModel, "no compacters"),
        (BitFitModel, "no biases that are added"),
        (PrefixModel, "moves the positions of the text"),
    ],
)
def test_a_delta_that_peft_cannot_express_is_refused_with_the_reason(written, tmp_path, kind, reason):
    options = {"reduction_factor": 4} if kind in (CompacterModel, LowRankAdapterModel) else {}
    with pytest.raises(ConfigError, match=rf"cannot be written for PEFT: .*{reason}.* Load it with deltahub\."):
        written(bert, kind, **options)
    assert not (tmp_path / "peft").exists()


def test_dora_on_a_part_of_a_layer_is_refused(written):
    with pytest.raises(ConfigError, match="no DoRA on a part of a layer"):
        written(gpt2, LoraModel, use_dora=True, given=True)


def test_the_names_of_modules_are_short_where_they_mean_these_alone(written):
    assert written(llama, LoraModel)[2]["target_modules"] == ["q_proj", "v_proj"]
    one = ["model.layers.0.self_attn.q_proj"]
    assert written(llama, LoraModel, modified_modules=one)[2]["target_modules"] == one


def test_an_adapter_names_its_backbone_its_task_and_the_delta_it_is_of(written, tmp_path):
    _, folder, config = written(llama, LoraModel)
    assert describe(tmp_path / "delta").digest in (folder / "README.md").read_text("utf-8")
    assert (config["task_type"], config["auto_mapping"], config["inference_mode"]) == ("CAUSAL_LM", None, True)
    _, _, config = written(bert, LoraModel)
    assert (config["task_type"], config["auto_mapping"]["base_model_class"]) == (None, "BertForSequenceClassification")


def test_the_same_delta_gives_the_same_bytes(written, tmp_path):
    _, folder, _ = written(llama, LoraModel)

    assert content_of(export_peft(tmp_path / "delta", tmp_path / "again")) == content_of(folder)


def test_a_reference_is_pulled(written, tmp_path):
    _, folder, _ = written(llama, LoraModel)
    Hub.open().push(tmp_path / "delta", "acme/l")

    assert content_of(export_peft("acme/l", tmp_path / "pulled")) == content_of(folder)


def test_a_folder_of_something_else_is_not_written_into(written, tmp_path):
    written(llama, LoraModel)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="contains something other than a PEFT adapter"):
        export_peft(tmp_path / "delta", tmp_path / "mine")
    assert content_of(tmp_path / "mine") == {"notes.txt": b"x"}
    assert export_peft(tmp_path / "delta", tmp_path / "peft") == tmp_path / "peft"


# The rules of vLLM 0.10: vllm/lora/peft_helper.py and vllm/lora/models.py.
def vllm_takes(folder):
    config = json.loads((folder / "adapter_config.json").read_bytes())
    names = load_file(folder / "adapter_model.safetensors")
    pattern = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
    return (
        isinstance(config["target_modules"], list)
        and config["modules_to_save"] is None
        and not config["use_dora"]
        and config["bias"] == "none"
        and all(pattern.fullmatch(name) for name in names)
    )


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, None),
        ({"lora_r": 16}, None),
        ({"lora_r": 17}, "--max-lora-rank 32: its rank is 17"),
        ({"use_dora": True}, "LoRAX would leave out a part: it also is DoRA."),
        ({"exclude": ("deltas", "lm_head")}, "it also replaces lm_head."),
        ({"modified_modules": ["layers.0.self_attn.q_proj"]}, "a LoRA on some layers of a kind"),
    ],
)
def test_the_notes_list_what_a_server_refuses(written, options, note):
    _, folder, _ = written(llama, LoraModel, **options)
    notes = serving_notes(folder)

    assert (notes == []) == (note is None)
    assert all(note in text for text in notes)
    assert vllm_takes(folder) == (note is None or "it also" not in note)


def test_the_notes_say_that_servers_take_lora_only(written):
    _, folder, _ = written(llama, IA3Model)

    assert serving_notes(folder) == ["vLLM and LoRAX serve LoRA only; this is IA3, for PEFT itself."]


def test_values_keep_their_precision(written, tmp_path):
    backbone = llama().bfloat16()
    delta = LoraModel(backbone, dtype=backbone.dtype)
    delta.freeze_module()
    delta.save_finetuned(tmp_path / "half")
    export_peft(tmp_path / "half", tmp_path / "out")

    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").values()} == {
        torch.bfloat16
    }
