"""An adapter of PEFT that says more than is understood, lacks something or fits nowhere is refused; other spellings of one are read."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftType, PromptTuningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file

from deltahub import AutoDeltaModel
from deltahub.errors import CheckpointError, ConfigError, PickleRefusedError
from deltahub.formats.peft.adapter_types import TYPES
from deltahub.formats.peft.fields import check_fields
from tests.backbones import bert, llama, logits_of, untouched

# PEFT asks transformers for what it renames.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*Norm:UserWarning"),
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning"),
]
PLAIN = {"target_modules": ["q_proj"], "r": 2}
Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def saved(tmp_path):
    """Makes an adapter in PEFT, saves it, and gives its folder."""

    def save(make, config):
        draw, model = torch.Generator().manual_seed(3), peft.get_peft_model(make(), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "original_module" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        model.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return save


def change(folder, how):
    """Change the tensors of an adapter."""
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(how(tensors), folder / "adapter_model.safetensors", {"format": "pt"})


def configure(folder, **changes):
    """Change the config of an adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(text):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if text not in name}


def outputs(make, folder, **options):
    backbone = make()
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **options)
    return logits_of(backbone)


def refused(folder, error, match, make=llama, **options):
    backbone = make()
    with untouched(backbone), pytest.raises(error, match=match):
        AutoDeltaModel.from_finetuned(folder, backbone_model=backbone, **options)


# ----- fields -----


@pytest.mark.parametrize("kind", TYPES)
def test_every_default_of_peft_is_understood(kind):
    own = (
        {"total_step": 1}
        if kind == "ADALORA"
        else {"cpt_token_ids": [1], "task_type": "CAUSAL_LM"}
        if kind == "CPT"
        else {}
    )
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**own)
    document = json.loads(json.dumps(config.to_dict(), default=list))
    check_fields({**document, "auto_mapping": {"base_model_class": "A", "parent_library": "b"}, "revision": "main"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_replication", [[0, 1]]),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("kasa_config", {"beta": 1}),
        ("velora_config", {"num_groups": 2}),
        ("alora_invocation_tokens", [5]),
        ("megatron_config", {"a": 1}),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 3}),
        ("monteclora_config", {"num_samples": 8}),
        ("enable_lora", [True, False, True]),
        ("of_a_later_release", 0.5),
        ("bias", "some"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "mica"),
        ("init_lora_weights", "of_a_later_release"),
    ],
)
def test_a_field_that_is_not_understood_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f"{key}=") as caught:
        check_fields({"peft_type": "LORA", "peft_version": "0.99", key: value})
    assert "PEFT" in str(caught.value)


@pytest.mark.parametrize("value", [None, False, [], {}, ""])
def test_a_field_of_a_later_release_that_is_off_is_taken(value):
    check_fields({"peft_type": "LORA", "of_a_later_release": value})


def test_fields_are_those_of_the_type(saved):
    with pytest.raises(ConfigError, match="a IA3 with use_dora=True"):
        check_fields({"peft_type": "IA3", "use_dora": True})
    with pytest.raises(ConfigError, match=r"type OF_A_LATER_RELEASE is not supported\. Supported: LORA, ADALORA, BEFT"):
        check_fields({"peft_type": "OF_A_LATER_RELEASE"})
    folder = saved(llama, LoraConfig(**PLAIN))
    configure(folder, use_qalora=True)
    refused(folder, ConfigError, "use_qalora=True")


def test_a_start_that_the_weight_does_not_determine_is_refused(saved):
    def even():
        model = llama()
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.copy_(torch.eye(16))
        return model

    folder = saved(even, LoraConfig(**PLAIN, init_lora_weights="pissa"))
    refused(folder, ConfigError, "cannot be told from its weight", even)


# ----- what is missing, and what does not fit -----


@pytest.mark.parametrize(
    ("options", "lacks", "match"),
    [
        (PLAIN, "layers.1.", r"no tensors for model\.layers\.1\.self_attn\.q_proj"),
        (PLAIN, "1.self_attn.q_proj.lora_B", "has only one of A and B"),
        ({**PLAIN, "modules_to_save": ["norm"]}, "model.norm", r"lacks model\.layers\.0|lacks model\.norm\.weight"),
        ({**PLAIN, "modules_to_save": ["lm_head"]}, "lm_head", r"lacks lm_head\.weight"),
        ({**PLAIN, "use_dora": True}, "magnitude", "DoRA without a magnitude"),
    ],
)
def test_a_file_that_lacks_tensors_is_refused(saved, options, lacks, match):
    folder = saved(llama, LoraConfig(**options))
    change(folder, without(lacks))
    refused(folder, CheckpointError, match)


@pytest.mark.parametrize(
    ("config", "lacks", "match"),
    [
        (LoraConfig(target_modules=["query"], r=2, task_type="SEQ_CLS"), "classifier.bias", r"lacks classifier\.bias"),
        (LoraConfig(target_modules=["query"], r=2, bias="all"), "key.bias", r"lacks bert\.\S+key\.bias.*and 1 more"),
        (IA3Config(target_modules=["key"], feedforward_modules=[]), "layer.0", "no tensors for bert"),
        (LNTuningConfig(target_modules=["LayerNorm"]), "embeddings", r"no tensors for bert\.embeddings\.LayerNorm"),
        (LNTuningConfig(target_modules=["LayerNorm"]), "embeddings.LayerNorm.ln_tuning_layers.bias", "bias is missing"),
    ],
)
def test_other_methods_lack_nothing_either(saved, config, lacks, match):
    folder = saved(bert, config)
    change(folder, without(lacks))
    refused(folder, CheckpointError, match, bert)


def test_a_head_that_an_old_config_does_not_name_is_missed_all_the_same(saved):
    folder = saved(bert, LoraConfig(target_modules=["query"], r=2, task_type="SEQ_CLS"))
    configure(folder, modules_to_save=None)
    change(folder, without("classifier"))
    refused(folder, CheckpointError, r"lacks classifier\.bias", bert)


@pytest.mark.parametrize(
    "changes", [{"r": 4}, {"rank_pattern": {"q_proj": 1}}, {"rank_pattern": {"1.self_attn.q_proj": 3}}]
)
def test_a_rank_that_is_not_the_configs_is_refused(saved, changes):
    folder = saved(llama, LoraConfig(**PLAIN))
    configure(folder, **changes)
    refused(folder, CheckpointError, "have rank 2 and 2; its config says")


def test_a_config_that_names_other_modules_than_the_file_is_refused(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    configure(folder, target_modules=["v_proj"])
    refused(folder, CheckpointError, r"no tensors for \S+v_proj")
    configure(folder, target_modules=[r"layers.0.self_attn.q_proj"])
    refused(folder, CheckpointError, r"tensors for model\.layers\.1\.self_attn\.q_proj, which target_modules")
    configure(folder, target_modules="(")
    refused(folder, ConfigError, "not a regular expression")
    configure(folder, target_modules=["q_proj"], modules_to_save=["score_head"])
    refused(folder, CheckpointError, "saves score_head, which this Llama")


def test_a_prompt_of_another_length_than_its_config_is_refused(saved):
    folder = saved(llama, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    configure(folder, num_virtual_tokens=2)
    refused(folder, CheckpointError, "has 3 tokens, and its config says 2")


def test_a_tensor_that_belongs_nowhere_is_an_error_and_not_passed_over(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    change(folder, lambda tensors: {**tensors, "base_model.model.model.norm.odd": torch.ones(3)})
    refused(folder, CheckpointError, r"model\.norm\.odd \[3\] is not part of the method, and is not there")


def test_an_adapter_of_another_architecture_is_refused(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    refused(folder, CheckpointError, r"sits on model\.layers\.0\.self_attn\.q_proj, which this BertFor", bert)


def test_values_that_are_not_finite_are_refused(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    change(folder, lambda tensors: {name: tensor * float("nan") for name, tensor in tensors.items()})
    refused(folder, CheckpointError, "not finite")


def test_two_values_of_one_weight_are_refused(saved):
    folder = saved(lambda: llama(tie_word_embeddings=True), LoraConfig(**PLAIN))
    one, two = torch.ones(50, 16), torch.zeros(50, 16)
    names = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
    change(folder, lambda tensors: {**tensors, names[0]: one, names[1]: two})
    refused(folder, CheckpointError, "holds two values", lambda: llama(tie_word_embeddings=True))


def test_only_beside_a_plain_lora_is_one_of_two_tied_layers_replaced(saved):
    def tied():
        return llama(tie_word_embeddings=True)

    folder = saved(tied, LNTuningConfig(target_modules=["norm"], modules_to_save=["lm_head"]))
    refused(folder, ConfigError, "replaces lm_head alone, which shares its weight", tied)


def test_a_file_that_is_cut_is_refused(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(folder, CheckpointError, "is not a safetensors file")


# ----- other spellings -----


def test_a_pickle_is_opened_on_the_readers_word_only(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    expected = outputs(llama, folder)
    path, pickled = folder / "adapter_model.safetensors", folder / "adapter_model.bin"
    torch.save(load_file(path), pickled)
    path.unlink()

    refused(folder, PickleRefusedError, "is a Python pickle")
    assert torch.equal(expected, outputs(llama, folder, allow_pickle=True))
    torch.save({"a": refused}, pickled)
    refused(folder, CheckpointError, "holds more than plain tensors", allow_pickle=True)
    pickled.unlink()
    refused(folder, CheckpointError, "is missing, though adapter_config.json is there")


@pytest.mark.parametrize(
    "spelled",
    [
        lambda name: name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace("base_model.model.", "base_model.model.module."),
        lambda name: name.replace("layers.1.", "layers.1._orig_mod._fsdp_wrapped_module."),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("model.norm.", "model.norm.modules_to_save.default."),
        lambda name: name.replace("model.norm.", "model.norm.modules_to_save."),
        lambda name: name.replace("_vector", "_vector.default.weight"),
    ],
)
def test_keys_of_training_runs_are_read(saved, spelled):
    folder = saved(llama, LoraConfig(**PLAIN, use_dora=True, modules_to_save=["model.norm"]))
    expected = outputs(llama, folder)
    change(folder, lambda tensors: {spelled(name): tensor for name, tensor in tensors.items()})

    assert torch.equal(expected, outputs(llama, folder))


def test_tensors_of_two_adapters_are_refused(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    change(folder, lambda tensors: {**tensors, f"{Q}.lora_A.other.weight": tensors[f"{Q}.lora_A.weight"] + 1})
    refused(folder, CheckpointError, "two tensors for model.layers.1.self_attn.q_proj")


def llava():
    text = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=49)
        return transformers.LlavaForConditionalGeneration(config).eval()


def text_logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 7)[None]).logits


def test_names_of_transformers_4_are_those_of_today(saved):
    targets = r".*language_model.*\.(q_proj|v_proj)"
    folder = saved(llava, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    expected = text_logits(peft.PeftModel.from_pretrained(llava(), folder).eval())
    now, then = "model.model.language_model.layers", "model.language_model.model.layers"
    change(folder, lambda tensors: {name.replace(now, then): tensor for name, tensor in tensors.items()})
    backbone = llava()
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)

    torch.testing.assert_close(text_logits(backbone), expected)
    assert not torch.allclose(text_logits(llava()), expected)


def mixtral():
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.MixtralConfig(
        **sizes, num_hidden_layers=1, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.MixtralForCausalLM(config).eval()


def test_a_lora_on_experts_without_their_names_is_refused_for_that_reason(saved):
    folder = saved(mixtral, LoraConfig(**PLAIN))
    change(
        folder, lambda tensors: {n.replace("self_attn.q_proj", "mlp.experts.base_layer"): t for n, t in tensors.items()}
    )
    refused(folder, ConfigError, "of experts of a mixture", mixtral)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match:RuntimeWarning")
def test_experts_that_were_layers_in_transformers_4_are_parts_of_a_parameter(saved):
    folder = saved(mixtral, LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"], init_lora_weights=False))
    draw = torch.Generator().manual_seed(5)
    widths = {"w1": (24, 16), "w2": (16, 24), "w3": (24, 16)}
    experts = {
        f"base_model.model.model.layers.0.block_sparse_moe.experts.{expert}.{layer}.lora_{side}.weight": torch.randn(
            *((2, n_in) if side == "A" else (n_out, 2)), generator=draw
        )
        for expert in range(2)
        for layer, (n_out, n_in) in widths.items()
        for side in "AB"
    }
    change(folder, lambda tensors: {**tensors, **experts})
    configure(folder, target_modules=["q_proj", "w1", "w2", "w3"])
    expected = text_logits(peft.PeftModel.from_pretrained(mixtral(), folder).eval())
    backbone = mixtral()
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)

    torch.testing.assert_close(text_logits(backbone), expected)
    assert (text_logits(mixtral()) - expected).abs().max() > 0.01


@pytest.mark.parametrize("how", ["flat", "number", "doubled", "whole"])
@pytest.mark.parametrize(
    ("kind", "leaf"), [("OFT", "oft_R"), ("VERA", "vera_lambda_d"), ("LOHA", "hada_w1_a"), ("C3A", "c3a_kernel")]
)
def test_tensors_of_other_shapes_than_the_methods_are_refused(saved, kind, leaf, how):
    options = {"OFT": {"oft_block_size": 4}, "C3A": {"block_size": 8}}.get(kind, {"r": 2})
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](target_modules=["q_proj"], **options)
    folder = saved(llama, config)
    ways = {
        "flat": lambda t: t.flatten().unsqueeze(0).repeat(3, 1),
        "number": lambda t: t.flatten()[0].clone(),
        "doubled": lambda t: torch.cat([t, t]),
        "whole": lambda t: t.to(torch.int32),
    }
    change(folder, lambda tensors: {n: ways[how](t) if leaf in n else t for n, t in tensors.items()})
    refused(folder, (CheckpointError, ConfigError), "Fetch it again|Load|cannot be divided")


def test_a_config_of_an_early_release_is_read(saved):
    folder = saved(llama, LoraConfig(**PLAIN))
    expected = outputs(llama, folder)
    early = {"enable_lora": None, "merge_weights": False, "fan_in_fan_out": False, "inference_mode": True}
    early |= {
        "base_model_name_or_path": "a/b",
        "bias": "none",
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
    }
    (folder / "adapter_config.json").write_text(json.dumps({**early, **PLAIN, "task_type": "CAUSAL_LM"}))

    assert torch.equal(outputs(llama, folder), expected)


@pytest.mark.parametrize("changes", [{"r": 0}, {"r": None}, {"lora_alpha": None}, {"rank_pattern": {"q_proj": [True]}}])
def test_a_size_that_is_none_is_refused(saved, changes):
    folder = saved(llama, LoraConfig(**PLAIN))
    configure(folder, **changes)
    refused(folder, ConfigError, "expected (a number|whole numbers)")


@pytest.mark.parametrize("changes", [{"peft_version": "0.17.1"}, {"peft_version": None}, {"use_cayley_neumann": ...}])
def test_rotations_of_releases_that_computed_them_otherwise_are_refused(saved, changes):
    folder = saved(llama, PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.OFT](target_modules=["q_proj"], oft_block_size=4))
    config = {**json.loads((folder / "adapter_config.json").read_text()), **changes}
    text = json.dumps({key: value for key, value in config.items() if value is not ...})
    (folder / "adapter_config.json").write_text(text)
    refused(folder, ConfigError, "of a release of PEFT that computed its rotations otherwise")


def mamba():
    config = transformers.MambaConfig(vocab_size=8, hidden_size=8, state_size=2, num_hidden_layers=1, expand=2)
    return transformers.MambaForCausalLM(config).eval()


def test_an_adapter_on_a_layer_that_is_never_called_is_refused_where_peft_does_nothing(saved):
    folder = saved(mamba, LoraConfig(target_modules=["in_proj", "dt_proj"], r=2))
    backbone = mamba()
    with untouched(backbone), pytest.raises(ConfigError, match=r"mixer\.dt_proj, which is never called"):
        AutoDeltaModel.from_finetuned(folder, backbone)
