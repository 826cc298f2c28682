"""Every adapter type of PEFT gives the same outputs here as in PEFT, or is refused with the reason."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from deltahub import AutoDeltaModel, LoraModel, TokenRowsModel, export_peft
from deltahub.errors import ConfigError
from deltahub.formats.peft.adapter_types import REFUSED, TYPES
from deltahub.formats.peft.fields import check_fields
from tests.backbones import bert, gpt2, inputs_for, llama, logits_of, stir, t5, vit
from tests.formats.interop import parts, table

TOLERANCE = 1e-5  # relative to the largest logit
LINEAR = {"target_modules": ["q_proj", "down_proj"]}  # of other widths: 16 x 16 and 24 x 16
FUSED = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}  # transformers' Conv1D


def tied(seed=0):
    return llama(seed, tie_word_embeddings=True)


CASES = {
    "adalora": (llama, "ADALORA", {**LINEAR, "init_r": 4, "target_r": 2, "total_step": 10, "lora_alpha": 6}),
    "adalora_embedding_rows": (
        llama,
        "ADALORA",
        {**LINEAR, "init_r": 4, "total_step": 10, "trainable_token_indices": [3]},
    ),
    "beft": (bert, "BEFT", {"target_modules": ["query", "dense"]}),
    "beft_without_bias": (llama, "BEFT", LINEAR),
    "boft": (llama, "BOFT", {**LINEAR, "boft_block_size": 4}),
    "boft_bias": (
        bert,
        "BOFT",
        {"target_modules": ["query"], "boft_block_num": 2, "boft_block_size": 0, "bias": "boft_only"},
    ),
    "boft_conv": (vit, "BOFT", {"target_modules": ["projection"], "boft_block_size": 4}),
    "c3a": (llama, "C3A", {**LINEAR, "block_size": 8}),
    "c3a_patterns": (llama, "C3A", {**LINEAR, "block_size": 8, "block_size_pattern": {"down_proj": 4}}),
    "cartridge": (llama, "CARTRIDGE", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}),
    "cpt": (
        llama,
        "CPT",
        {
            "cpt_token_ids": [1, 2, 3],
            "cpt_mask": [1, 1, 1],
            "cpt_tokens_type_mask": [1, 2, 3],
            "num_virtual_tokens": 3,
            "task_type": "CAUSAL_LM",
        },
    ),
    "deft": (llama, "DEFT", {**LINEAR, "r": 3, "alpha": 2.0}),
    "deft_qr": (bert, "DEFT", {"target_modules": ["query"], "r": 3, "decomposition_method": "qr"}),
    "deft_para": (llama, "DEFT", {**LINEAR, "r": 3, "para": True}),
    "delora": (llama, "DELORA", {**LINEAR, "r": 3, "rank_pattern": {"down_proj": 2}, "lambda_pattern": {"q_proj": 4}}),
    "fourierft": (llama, "FOURIERFT", {**LINEAR, "n_frequency": 20, "n_frequency_pattern": {"q_proj": 10}}),
    "fourierft_conv1d": (gpt2, "FOURIERFT", {**FUSED, "n_frequency": 20}),
    "glora": (llama, "GLORA", {**LINEAR, "r": 2}),
    "glora_bias": (
        bert,
        "GLORA",
        {"target_modules": ["dense"], "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
    ),
    "glora_constants": (
        bert,
        "GLORA",
        {"target_modules": ["dense"], "config_A_B": "constant", "config_C": "lora", "r": 2},
    ),
    "gralora": (llama, "GRALORA", {**LINEAR, "r": 4, "alpha": 3}),
    "gralora_hybrid": (gpt2, "GRALORA", {**FUSED, "r": 4, "hybrid_r": 2}),
    "hira": (llama, "HIRA", {**LINEAR, "r": 3, "rank_pattern": {"q_proj": 2}}),
    "hira_conv1d": (gpt2, "HIRA", {**FUSED, "r": 3}),
    "hra": (llama, "HRA", {**LINEAR, "r": 4}),
    "hra_orthogonal": (bert, "HRA", {"target_modules": ["query"], "r": 4, "apply_GS": True, "bias": "all"}),
    "hra_conv": (vit, "HRA", {"target_modules": ["projection"], "r": 4}),
    "ia3": (
        gpt2,
        "IA3",
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"], "fan_in_fan_out": True},
    ),
    "ln_tuning": (bert, "LN_TUNING", {"target_modules": ["LayerNorm"]}),
    "loha": (
        llama,
        "LOHA",
        {**LINEAR, "r": 3, "alpha": 2, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5}},
    ),
    "loha_conv": (vit, "LOHA", {"target_modules": ["projection"], "r": 3}),
    "loha_conv_tucker": (vit, "LOHA", {"target_modules": ["projection"], "r": 3, "use_effective_conv2d": True}),
    "lokr": (llama, "LOKR", {**LINEAR, "r": 1, "alpha": 2}),
    "lokr_whole": (llama, "LOKR", {**LINEAR, "r": 8, "decompose_factor": 2}),
    "lokr_both": (llama, "LOKR", {**LINEAR, "r": 1, "decompose_both": True, "decompose_factor": 8}),
    "lokr_conv": (vit, "LOKR", {"target_modules": ["projection"], "r": 1}),
    "lokr_conv_whole": (vit, "LOKR", {"target_modules": ["projection"], "r": 8}),
    "lokr_conv_tucker": (vit, "LOKR", {"target_modules": ["projection"], "r": 1, "use_effective_conv2d": True}),
    "lora_bias": (
        bert,
        "LORA",
        {"target_modules": ["query", "word_embeddings"], "r": 2, "lora_bias": False, "bias": "lora_only"},
    ),
    "lora_b_bias": (llama, "LORA", {**LINEAR, "r": 2, "lora_bias": True}),
    "lora_conv": (vit, "LORA", {"target_modules": ["projection", "q_proj"], "r": 2, "lora_alpha": 3}),
    "lora_conv_bias": (vit, "LORA", {"target_modules": ["projection"], "r": 2, "lora_bias": True}),
    "lora_rows": (llama, "LORA", {**LINEAR, "r": 2, "trainable_token_indices": [11, 12, 13, 14, 15, 16]}),
    "lora_rows_by_name": (
        llama,
        "LORA",
        {**LINEAR, "r": 2, "trainable_token_indices": {"embed_tokens": [3], "lm_head": [5, 6]}},
    ),
    "lora_rows_tied": (tied, "LORA", {**LINEAR, "r": 2, "trainable_token_indices": [11, 12, 13, 14, 15, 16]}),
    "miss": (llama, "MISS", {**LINEAR, "r": 4}),
    "miss_uneven": (llama, "MISS", {**LINEAR, "r": 5}),
    "miss_mini": (llama, "MISS", {**LINEAR, "r": 4, "init_weights": "mini", "mini_r": 2}),
    "miss_bat": (llama, "MISS", {**LINEAR, "r": 4, "init_weights": "bat"}),
    "oft": (llama, "OFT", {**LINEAR, "oft_block_size": 4}),
    "oft_two_terms": (llama, "OFT", {**LINEAR, "oft_block_size": 4, "num_cayley_neumann_terms": 2}),
    "oft_three_terms": (llama, "OFT", {**LINEAR, "oft_block_size": 4, "num_cayley_neumann_terms": 3}),
    "oft_inverse": (llama, "OFT", {**LINEAR, "r": 2, "oft_block_size": 0, "use_cayley_neumann": False}),
    "oft_shared": (
        bert,
        "OFT",
        {"target_modules": ["query"], "oft_block_size": 4, "block_share": True, "bias": "oft_only"},
    ),
    "oft_constrained": (llama, "OFT", {**LINEAR, "oft_block_size": 4, "coft": True, "eps": 0.5}),
    "osf": (llama, "OSF", {**LINEAR, "effective_rank": 6}),
    "p_tuning": (gpt2, "P_TUNING", {"num_virtual_tokens": 3, "encoder_hidden_size": 8, "task_type": "CAUSAL_LM"}),
    "p_tuning_of_an_encoder": (
        t5,
        "P_TUNING",
        {"num_virtual_tokens": 3, "encoder_hidden_size": 8, "task_type": "SEQ_2_SEQ_LM"},
    ),
    "prefix_gpt2": (gpt2, "PREFIX_TUNING", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}),
    "prefix_llama": (llama, "PREFIX_TUNING", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}),
    "prefix_network": (
        llama,
        "PREFIX_TUNING",
        {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM", "prefix_projection": True, "encoder_hidden_size": 8},
    ),
    "prefix_bert": (bert, "PREFIX_TUNING", {"num_virtual_tokens": 3, "task_type": "SEQ_CLS"}),
    "prefix_t5": (t5, "PREFIX_TUNING", {"num_virtual_tokens": 3, "task_type": "SEQ_2_SEQ_LM"}),
    "prompt": (llama, "PROMPT_TUNING", {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}),
    "pvera": (llama, "PVERA", {**LINEAR, "r": 4}),
    "pvera_drawn": (llama, "PVERA", {**LINEAR, "r": 4, "save_projection": False, "projection_prng_key": 5}),
    "randlora": (llama, "RANDLORA", {**LINEAR, "r": 3}),
    "randlora_conv1d": (gpt2, "RANDLORA", {**FUSED, "r": 3, "sparse": True}),
    "road_1": (llama, "ROAD", {**LINEAR, "group_size": 4}),
    "road_2": (bert, "ROAD", {"target_modules": ["dense"], "variant": "road_2", "group_size": 8}),
    "road_4": (llama, "ROAD", {**LINEAR, "variant": "road_4", "group_size": 4}),
    "shira": (llama, "SHIRA", {**LINEAR, "r": 2}),
    "supertuning": (llama, "SUPERTUNING", {**LINEAR, "sparsity": 0.9}),
    "supertuning_lora": (
        llama,
        "SUPERTUNING",
        {**LINEAR, "sparsity": 0.9, "r": 2, "lora_alpha": 3, "save_precomputed_indices": False},
    ),
    "tokens": (
        llama,
        "TRAINABLE_TOKENS",
        {"token_indices": [11, 12, 13, 14, 15, 16], "target_modules": ["embed_tokens"]},
    ),
    "tokens_tied": (
        tied,
        "TRAINABLE_TOKENS",
        {"token_indices": [11, 12, 13, 14, 15, 16], "target_modules": ["embed_tokens"]},
    ),
    "unilora": (llama, "UNILORA", {**LINEAR, "r": 2, "theta_d_length": 16, "save_indices": True}),
    "vblora": (llama, "VBLORA", {"target_modules": ["q_proj", "v_proj"], "r": 2, "num_vectors": 6, "vector_length": 8}),
    "vblora_largest": (
        llama,
        "VBLORA",
        {
            "target_modules": ["q_proj"],
            "r": 2,
            "num_vectors": 6,
            "vector_length": 4,
            "topk": 3,
            "save_only_topk_weights": True,
        },
    ),
    "vera": (llama, "VERA", {**LINEAR, "r": 4}),
    "vera_drawn": (llama, "VERA", {**LINEAR, "r": 4, "save_projection": False, "projection_prng_key": 5}),
    "vera_conv1d": (gpt2, "VERA", {**FUSED, "r": 4}),
    "waveft": (llama, "WAVEFT", {**LINEAR, "n_frequency": 20}),
    "waveft_odd": (bert, "WAVEFT", {"target_modules": ["classifier", "query"], "n_frequency": 10}),
}


def far(expected, actual):
    return ((expected - actual).abs().max() / expected.abs().max()).item()


def saved(tmp_path, make, kind, options, spread=0.2):
    """Make an adapter in PEFT, train it by a random step, save it, and return its logits there and its folder."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # PEFT's advice to those who train
        torch.manual_seed(2)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)](**options)
        model = peft.get_peft_model(make(), config).eval()
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "original_module" not in name:
                    parameter.add_(torch.randn(parameter.shape, generator=draw) * spread)
        model.save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
        return logits_of(again), tmp_path / "adapter"


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_gives_the_outputs_that_it_gives_in_peft(tmp_path, case):
    make, kind, options = CASES[case]
    expected, folder = saved(tmp_path, make, kind, options)
    backbone = make()
    AutoDeltaModel.from_finetuned(folder, backbone_model=backbone)
    actual = logits_of(backbone)
    assert expected.shape == actual.shape

    assert far(expected, actual) < TOLERANCE
    plain = logits_of(make())
    assert plain.shape != expected.shape or far(expected, plain) > 100 * TOLERANCE


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_multitask_prompt_is_read_if_it_has_one_task(tmp_path, tasks):
    config = peft.MultitaskPromptTuningConfig(num_tasks=tasks, num_virtual_tokens=3, task_type="CAUSAL_LM", num_ranks=2)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(2)
        peft.get_peft_model(llama(), config).save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter").eval()
    backbone = llama()
    if tasks > 1:
        with pytest.raises(ConfigError, match="of 2 tasks, which every call has to choose from"):
            AutoDeltaModel.from_finetuned(tmp_path / "adapter", backbone_model=backbone)
        return
    AutoDeltaModel.from_finetuned(tmp_path / "adapter", backbone_model=backbone)
    with torch.no_grad():
        expected = again(**inputs_for(backbone), task_ids=torch.tensor([0, 0])).logits

    assert far(expected, logits_of(backbone)) < TOLERANCE


@pytest.mark.parametrize(
    "case", ["adalora", "lora_b_bias", "lora_conv", "lora_conv_bias", "lora_rows", "vera", "vera_conv1d"]
)
def test_low_rank_methods_go_back_to_peft(tmp_path, case):
    make, kind, options = CASES[case]
    expected, folder = saved(tmp_path, make, kind, options)
    AutoDeltaModel.from_finetuned(folder, backbone_model=make()).save_finetuned(tmp_path / "delta")
    export_peft(tmp_path / "delta", tmp_path / "back", backbone=make())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        back = peft.PeftModel.from_pretrained(make(), tmp_path / "back").eval()

    assert far(expected, logits_of(back)) < TOLERANCE


@pytest.mark.parametrize("make", [gpt2, llama, bert, t5])
def test_trained_rows_are_written_for_peft_with_equal_outputs(tmp_path, make):
    backbone = make()
    tokens = sorted({int(token) for token in inputs_for(backbone)["input_ids"].flatten()})[:3]
    delta = TokenRowsModel(backbone, token_indices=[*tokens, 40])
    delta.freeze_module()
    stir(delta)
    expected = logits_of(backbone)
    delta.export(tmp_path / "adapter", "peft")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        back = peft.PeftModel.from_pretrained(make(), tmp_path / "adapter").eval()
    assert far(expected, logits_of(back)) < TOLERANCE
    delta.save_finetuned(tmp_path / "delta")
    with pytest.raises(ConfigError, match=r"themselves, and the delta their differences.*--backbone"):
        export_peft(tmp_path / "delta", tmp_path / "other")


class Mixing(nn.Module):
    """A layer with a matrix and a stack of matrices that no layer of torch computes with."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.empty(8, 8))
        self.experts = nn.Parameter(torch.empty(2, 4, 8))

    def forward(self, x):
        return x @ self.matrix.T + torch.einsum("bti,eoi->bt", x, self.experts)[..., None]


class Attending(nn.Module):
    """A model with an attention and convolutions that is none of transformers'."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.line = nn.Conv1d(8, 8, 3, padding=1, stride=2)
        self.volume = nn.Conv3d(1, 4, 2)
        self.mixing = Mixing()
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        mixed, _ = self.attention(x, x, x)
        mixed = self.mixing(mixed)
        folded = self.volume(x.view(-1, 1, 4, 4, 4)).flatten(1).mean(1)
        return self.head(self.line(mixed.mT).mT) + folded[:, None, None]


def attending():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Attending().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        return model


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["attention", "head"], "use_rslora": True},
        {"target_modules": ["attention"]},
        {"target_modules": ["line", "volume"], "lora_alpha": 5},
        {"target_modules": ["line"], "lora_bias": True},
        {"target_modules": ["head"], "target_parameters": ["mixing.experts", "matrix"]},
        {"target_modules": [], "target_parameters": ["mixing.experts"], "rank_pattern": {"mixing.experts": 3}},
    ],
    ids=str,
)
def test_a_lora_acts_on_convolutions_and_on_parameters_that_no_layer_computes_with(tmp_path, options):
    x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(attending(), peft.LoraConfig(r=2, init_lora_weights=False, **options)).eval()
        model.save_pretrained(tmp_path / "adapter")
        with torch.no_grad():
            expected, plain = model(x), attending()(x)
    backbone = attending()
    delta = AutoDeltaModel.from_finetuned(tmp_path / "adapter", backbone_model=backbone)
    with torch.no_grad():
        actual = backbone(x)
        delta.detach()
        back = backbone(x)

    assert far(expected, actual) < TOLERANCE
    assert far(expected, plain) > 100 * TOLERANCE
    torch.testing.assert_close(back, plain)  # torch has a faster attention for layers without anything on them


def test_every_type_of_peft_is_decided():
    kinds = {kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING}

    assert kinds == TYPES.keys() | REFUSED.keys()
    assert not TYPES.keys() & REFUSED.keys()
    assert {kind for _, kind, _ in CASES.values()} >= TYPES.keys() - {"MULTITASK_PROMPT_TUNING"}


def test_the_documentation_says_what_becomes_of_each_type():
    _, inside, _ = parts()
    assert inside == table(), "run python -m tests.formats.interop"


@pytest.mark.parametrize("kind", REFUSED)
def test_a_type_without_an_equivalent_is_refused_with_the_reason(kind):
    with pytest.raises(ConfigError, match=f"{kind} is not supported: .*{REFUSED[kind][:20]}.*Load it with PEFT"):
        check_fields({"peft_type": kind})


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2, "padding": "same"}, {"padding_mode": "reflect"}])
def test_a_lora_on_a_convolution_is_not_written_where_peft_computes_another_update(tmp_path, options):
    backbone = nn.Sequential(nn.Conv2d(4, 4, 3, **options))
    delta = LoraModel(backbone, lora_r=2, modified_modules=["0"])
    delta.freeze_module()
    delta.save_finetuned(tmp_path / "delta")
    with pytest.raises(ConfigError, match="groups, dilation or padding other than zeros"):
        export_peft(tmp_path / "delta", tmp_path / "adapter", backbone=backbone)


@pytest.mark.parametrize(
    ("addresses", "options"),
    [
        (["attention"], {}),
        (["attention.q", "attention.v", "head"], {"use_rslora": True}),
        (["attention.proj", "head"], {"rank_pattern": {"head": 3}, "alpha_pattern": {"attention": 5.0}}),
    ],
    ids=str,
)
def test_a_lora_on_an_attention_of_pytorch_is_written_with_equal_outputs(tmp_path, addresses, options):
    x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(4))
    backbone = attending()
    delta = LoraModel(backbone, lora_r=2, modified_modules=addresses, **options)
    stir(delta)
    delta.freeze_module()
    delta.save_finetuned(tmp_path / "delta")
    adapter = export_peft(tmp_path / "delta", tmp_path / "adapter")
    backbone.eval()
    with torch.no_grad():
        assert far(peft.PeftModel.from_pretrained(attending(), adapter)(x), backbone(x)) < TOLERANCE
        read = attending()
        AutoDeltaModel.from_finetuned(adapter, backbone_model=read)
        assert far(read(x), backbone(x)) < TOLERANCE
