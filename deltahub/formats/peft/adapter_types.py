"""The adapter types of PEFT: what each becomes, how its tensors are called, and which fields of its config are understood.

A field is *used* by the reader, or *inert*: its value cannot change the outputs of a saved adapter. Every other field, in any release of
PEFT, must be off: null, false or empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from deltahub.formats.peft import adalora, low_rank_reading, prompt_reading, update_reading, vector_reading, vera
from deltahub.formats.peft.lora_reading import lora
from deltahub.formats.peft.low_rank_reading import low_rank
from deltahub.formats.peft.saved_adapter import Converted, SavedAdapter
from deltahub.formats.peft.tensor_names import LeafNames
from deltahub.formats.peft.update_reading import dense, weight_update

_BASE: Final = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}
_TUNER: Final = _BASE | {"exclude_modules", "layers_pattern", "layers_to_transform", "target_modules"}
# Fields that PEFT copies from the model for its prompts, and how a prompt was initialised.
_PROMPT: Final = _BASE | {
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "num_virtual_tokens",
    "token_dim",
}
_LORA: Final = _TUNER | {
    "alpha_pattern",
    "bias",
    "corda_config",  # for an initialisation, as are those below: `init_lora_weights` says which one was used
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",  # PEFT itself looks at the layer, not at the config
    "init_lora_weights",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",  # used only with `megatron_config`
    "merge_weights",  # in PEFT 0.1 to 0.3: how eval() ran
    "qalora_group_size",  # used only with `use_qalora`
    "r",
    "rank_pattern",
    "runtime_config",
    "target_parameters",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
}


@dataclass(frozen=True)
class AdapterType:
    """A type of PEFT that can be read.

    Attributes:
        becomes: the delta that it becomes, for the documentation.
        read: converts an adapter.
        leaves: the names of its tensors.
        fields: the fields of its config that are understood.
        whole_numbers: own names of tensors that hold whole numbers.
    """

    becomes: str
    read: Callable[[SavedAdapter], Converted]
    leaves: LeafNames
    fields: frozenset[str]
    whole_numbers: frozenset[str] = frozenset()


def _type(
    becomes: str,
    read: Callable[[SavedAdapter], Converted],
    leaves: str,
    fields: str = "",
    *,
    shared: str = "",
    base: set[str] = _TUNER,
    whole_numbers: str = "",
) -> AdapterType:
    """Build a type from lists of words; a leaf's own name is that in the file without ``.weight``."""
    names = LeafNames(
        {leaf: leaf.removesuffix(".weight") for leaf in leaves.split()},
        shared=shared.split(),
        wraps_once=base is _PROMPT,
    )
    return AdapterType(becomes, read, names, frozenset(base | {*fields.split()}), frozenset(whole_numbers.split()))


_LORA_LEAVES: Final = {
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_B.bias": "lora_B.bias",
    "lora_embedding_A": "lora_A",
    "lora_embedding_B": "lora_B",
    "lora_magnitude_vector": "lora_magnitude_vector",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
}
_PROJECTIONS: Final = "projection_prng_key save_projection"
_PROMPT_STARTS: Final = "prompt_tuning_init prompt_tuning_init_text tokenizer_kwargs tokenizer_name_or_path"
_LYCORIS: Final = "alpha alpha_pattern init_weights module_dropout r rank_dropout rank_pattern use_effective_conv2d"

TYPES: Final[Mapping[str, AdapterType]] = {
    "LORA": AdapterType("lora", lora, LeafNames(_LORA_LEAVES), frozenset(_LORA)),
    "ADALORA": _type(
        "adalora; on convolutions or beside trained tokens lora",
        adalora.read,
        "lora_A lora_B lora_E",
        "beta1 beta2 deltaT init_r orth_reg_weight target_r tfinal tinit total_step",
        base=_LORA - {"lora_bias", "alpha_pattern", "target_parameters"},
    ),
    "BEFT": _type("bitfit", vector_reading.beft, "beft_bias", "init_weights"),
    "BOFT": _type(
        "weight_update (boft)",
        weight_update("boft", update_reading.boft),
        "boft_R boft_s",
        "bias boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor fan_in_fan_out init_weights",
    ),
    "C3A": _type(
        "weight_update (c3a)",
        weight_update("c3a", update_reading.c3a),
        "c3a_kernel",
        "bias block_size block_size_pattern init_weights",
    ),
    "CARTRIDGE": _type(
        "prefix", prompt_reading.prefix, "", "num_frozen_tokens", shared="prompt_embeddings", base=_PROMPT
    ),
    "CPT": _type(
        "soft_prompt",
        prompt_reading.soft_prompt,
        "",
        "cpt_mask cpt_token_ids cpt_tokens_type_mask opt_loss_decay_factor opt_projection_epsilon opt_projection_format_epsilon "
        "opt_weighted_loss_type tokenizer_name_or_path",
        shared="prompt_embeddings",
        base=_PROMPT,
    ),
    "DEFT": _type(
        "lora",
        low_rank(low_rank_reading.deft),
        "deft_P deft_R",
        "alpha bias decomposition_method deft_dropout fan_in_fan_out init_scale init_weights para r",
    ),
    "DELORA": _type(
        "lora",
        low_rank(low_rank_reading.delora),
        "delora_A delora_B delora_lambda delora_w_norm",
        "bias delora_lambda init_weights lambda_pattern module_dropout r rank_pattern",
    ),
    "FOURIERFT": _type(
        "weight_update (fourierft)",
        weight_update("fourierft", update_reading.fourierft),
        "fourierft_spectrum",
        "bias fan_in_fan_out init_weights n_frequency n_frequency_pattern random_loc_seed scaling",
    ),
    "GLORA": _type(
        "weight_update (dense)",
        weight_update("dense", update_reading.glora),
        " ".join(f"glora_{part}.{leaf}" for part in "ABCDE" for leaf in ("X", "Xd", "Xu", "zeros")),
        "bias config_A_B config_C config_D_E init_weights r",
    ),
    "GRALORA": _type(
        "lora",
        low_rank(low_rank_reading.gralora, dropout="gralora_dropout"),
        "gralora_A gralora_B gralora_A_general.weight gralora_B_general.weight",
        "alpha bias fan_in_fan_out gralora_dropout gralora_k hybrid_r init_weights r",
    ),
    "HIRA": _type(
        "weight_update (hira)",
        weight_update("hira", update_reading.hira),
        "hira_A hira_B",
        "fan_in_fan_out hira_dropout init_weights r rank_pattern",
    ),
    "HRA": _type(
        "weight_update (hra)", weight_update("hra", update_reading.hra), "hra_u", "apply_GS bias init_weights r"
    ),
    "IA3": _type(
        "ia3", vector_reading.ia3, "ia3_l", "fan_in_fan_out feedforward_modules init_ia3_weights", base=_TUNER
    ),
    "LN_TUNING": AdapterType(
        "layer_norm",
        vector_reading.layer_norm,
        LeafNames({name: name for name in ("ln_tuning_layers.weight", "ln_tuning_layers.bias")}),
        frozenset(_TUNER),
    ),
    "LOHA": _type(
        "weight_update (loha)",
        weight_update("loha", update_reading.loha),
        "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2",
        _LYCORIS,
    ),
    "LOKR": _type(
        "weight_update (lokr)",
        weight_update("lokr", update_reading.lokr),
        "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2",
        f"{_LYCORIS} decompose_both decompose_factor rank_dropout_scale",
    ),
    "MISS": _type(
        "lora; bat: weight_update (dense)", update_reading.miss, "miss_block", "bias init_weights mini_r miss_dropout r"
    ),
    "MULTITASK_PROMPT_TUNING": _type(
        "soft_prompt, if it has one task",
        prompt_reading.multitask_prompt,
        "",
        f"{_PROMPT_STARTS} num_ranks num_tasks prompt_tuning_init_state_dict_path prompt_tuning_init_task",
        shared="prompt_embeddings prefix_task_cols prefix_task_rows",
        base=_PROMPT,
    ),
    "OFT": _type(
        "weight_update (oft)",
        weight_update("oft", update_reading.oft),
        "oft_R.weight",
        "bias block_share coft eps fan_in_fan_out init_weights module_dropout num_cayley_neumann_terms oft_block_size r use_cayley_neumann",
    ),
    "OSF": _type(
        "weight_update (dense)",
        weight_update("dense", dense(update_reading.osf)),
        "osf_svd_params.U_low osf_svd_params.S_low osf_svd_params.V_low",
        "effective_rank init_weights rank_pattern target_svd_config",
    ),
    "P_TUNING": _type(
        "soft_prompt",
        prompt_reading.soft_prompt,
        "",
        "encoder_dropout encoder_hidden_size encoder_num_layers encoder_reparameterization_type",
        shared="prompt_embeddings",
        base=_PROMPT,
    ),
    "PREFIX_TUNING": _type(
        "prefix",
        prompt_reading.prefix,
        "",
        "encoder_hidden_size init_weights prefix_projection",
        shared="prompt_embeddings",
        base=_PROMPT,
    ),
    "PROMPT_TUNING": _type(
        "soft_prompt", prompt_reading.soft_prompt, "", _PROMPT_STARTS, shared="prompt_embeddings", base=_PROMPT
    ),
    "PVERA": _type(
        "lora",
        low_rank(low_rank_reading.pvera, dropout="pvera_dropout"),
        "pvera_lambda_b pvera_lambda_d",
        f"bias d_initial fan_in_fan_out generator_seed init_weights pvera_dropout r sample_at_inference {_PROJECTIONS}",
        shared="pvera_A pvera_B",
    ),
    "RANDLORA": _type(
        "weight_update (dense)",
        weight_update("dense", dense(update_reading.randlora)),
        "randlora_gamma randlora_lambda randlora_A randlora_B",
        f"bias fan_in_fan_out init_weights r randlora_alpha randlora_dropout sparse very_sparse {_PROJECTIONS}",
        shared="randlora_A randlora_B",
    ),
    "ROAD": _type(
        "weight_update (road)",
        weight_update("road", update_reading.road),
        "road_alpha road_theta",
        "group_size init_weights variant",
    ),
    "SHIRA": _type(
        "weight_update (sparse)",
        weight_update("sparse", update_reading.shira),
        "shira_weight shira_indices",
        "fan_in_fan_out init_weights mask_type r random_seed",
        whole_numbers="shira_indices",
    ),
    "SUPERTUNING": _type(
        "weight_update (sparse, with a rank dense)",
        update_reading.supertuning,
        "supertuning_indices supertuning_values supertuning_lora_A.weight supertuning_lora_B.weight",
        "init_weights lora_alpha lora_dropout r save_precomputed_indices select_top sparsity",
        whole_numbers="supertuning_indices",
    ),
    "TRAINABLE_TOKENS": _type("lora", low_rank_reading.tokens, "", "init_weights token_indices"),
    "UNILORA": _type(
        "lora, if its file has the places (save_indices)",
        low_rank(low_rank_reading.unilora, dropout="unilora_dropout"),
        "unilora_indices_A unilora_indices_B unilora_scales_A unilora_scales_B",
        "bias fan_in_fan_out init_theta_d_bound init_weights proj_seed r save_indices theta_d_length unilora_dropout",
        shared="unilora_theta_d",
        whole_numbers="unilora_indices_A unilora_indices_B",
    ),
    "VBLORA": _type(
        "lora",
        low_rank(low_rank_reading.vblora, dropout="vblora_dropout"),
        "vblora_logits_A vblora_logits_B vblora_logits_A_topk_indices vblora_logits_A_topk_weights vblora_logits_B_topk_indices "
        "vblora_logits_B_topk_weights",
        "bias fan_in_fan_out init_logits_std init_vector_bank_bound num_vectors r save_only_topk_weights topk vblora_dropout vector_length",
        shared="vblora_vector_bank",
        whole_numbers="vblora_logits_A_topk_indices vblora_logits_B_topk_indices",
    ),
    "VERA": _type(
        "vera",
        vera.read,
        "vera_lambda_b vera_lambda_d",
        f"bias d_initial fan_in_fan_out init_weights r vera_dropout {_PROJECTIONS}",
        shared="vera_A vera_B",
    ),
    "WAVEFT": _type(
        "weight_update (waveft), with the wavelets db1",
        weight_update("waveft", update_reading.waveft),
        "waveft_spectrum",
        "bias fan_in_fan_out init_weights n_frequency n_frequency_pattern proportional_parameters random_loc_seed scaling use_idwt "
        "wavelet_family",
    ),
}
REFUSED: Final[Mapping[str, str]] = {
    "ADAMSS": "its file does not tell which rows form a group",
    "ADAPTION_PROMPT": "it changes what an attention computes, by a gate for each layer",
    "FROD": "its file does not hold the directions that it computed from the weights",
    "LILY": "its update depends on the input",
    "PEANUT": "its update is a network of the weight",
    "POLY": "every call has to choose from its tasks",
    "PSOFT": "it depends on signs of singular vectors that its file does not hold",
    "SHADOW": "it runs a second model beside the backbone",
    "TINYLORA": "it depends on signs of singular vectors that its file does not hold",
    "XLORA": "its update depends on the input",
}
