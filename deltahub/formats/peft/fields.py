"""The supported fields of PEFT's configs; an adapter with any other field set is refused.

A field is *used* by the reader, or *inert*: its value cannot change the outputs of a saved adapter. Every other field,
in any release of PEFT, must be off: null, false or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from deltahub.errors import ConfigError
from deltahub.files.documents import shown

_COMMON: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "modules_to_save",
        "peft_type",
        "peft_version",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
# By type; the comments say why a field is inert.
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "LORA": _COMMON
    | {
        "alpha_pattern",
        "bias",
        "corda_config",  # for an initialisation, as are those below: `init_lora_weights` says which one was used
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",  # PEFT itself looks at the layer, not at the config
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",  # used only with `megatron_config`
        "merge_weights",  # in PEFT 0.1 to 0.3: how eval() ran
        "qalora_group_size",  # used only with `use_qalora`
        "r",
        "rank_pattern",
        "use_dora",
        "use_rslora",
    },
    "IA3": _COMMON | {"fan_in_fan_out", "feedforward_modules", "init_ia3_weights"},
    "LN_TUNING": _COMMON,
    "PROMPT_TUNING": _COMMON
    | {
        "num_attention_heads",  # for prefix tuning, as is the next one
        "num_layers",
        "num_transformer_submodules",
        "num_virtual_tokens",
        "prompt_tuning_init",  # how the prompt was initialised, as are the next three
        "prompt_tuning_init_text",
        "token_dim",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    },
}
TYPES: Final = tuple(_KNOWN)
_EXPERTS: Final = "it acts on parameters that are not layers, such as the experts of a mixture (MoE)"
_REASONS: Final[Mapping[str, str]] = {
    "alora_invocation_tokens": "it acts only after certain tokens (aLoRA)",
    "layer_replication": "it repeats layers of the backbone",
    "lora_bias": "its B has a bias",
    "target_parameters": _EXPERTS,
    "trainable_token_indices": "it trains single tokens of an embedding",
}
_COUNTS: Final = ("r", "layers_to_transform", "num_virtual_tokens", "num_transformer_submodules")
# Initialisations that leave the backbone as it is: only the first values of A and B, which training replaced.
_HARMLESS_STARTS: Final = ("gaussian", "eva", "orthogonal")
REBUILT_STARTS: Final = ("pissa", "olora")  # `lora_reading` recomputes what they subtracted from the backbone
_LOST_STARTS: Final[Mapping[str, str]] = {
    "pissa_niter": "its SVD is a random approximation",
    "corda": "it needs the data that it was computed from",
    "lora_ga": "it needs the gradients that it was computed from",
    "loftq": "it needs the quantised backbone that it was computed with",
}


def check_fields(config: Mapping[str, Any]) -> None:
    """Refuse a config of PEFT with any field set that the reader does not support.

    Raises:
        ConfigError: a field is set that is not supported; the message says which, and the way out.
    """
    kind = config["peft_type"]
    if kind not in _KNOWN:
        msg = f"PEFT adapter type {kind} is not supported. Supported: {', '.join(TYPES)}. Load it with PEFT."
        raise ConfigError(msg)
    for key, value in config.items():
        if key not in _KNOWN[kind] and value not in (None, False, "") and value not in ([], {}):
            version = config.get("peft_version")
            reason = _REASONS.get(key) or f"this field{f' of PEFT {version}' if version else ''} is not supported"
            msg = f"The adapter is a {kind} with {shown(key)[1:-1]}={shown(value)}: {reason}. Load it with PEFT."
            raise ConfigError(msg)
    if fractions := [key for key in _COUNTS if isinstance(config.get(key), float)]:  # JSON Schema takes 8.0 for a count
        setting = f"{fractions[0]}={config[fractions[0]]!r}"
        msg = f"The adapter is a {kind} with {setting}; expected a whole number, as PEFT writes it. Fetch it again."
        raise ConfigError(msg)
    if kind == "LORA":
        _check_start(config.get("init_lora_weights", True))
        if (bias := config.get("bias") or "none") not in ("none", "all", "lora_only"):
            msg = f"The adapter is a LORA with bias={bias!r}; expected none, all or lora_only. Load it with PEFT."
            raise ConfigError(msg)


def _check_start(start: Any) -> None:
    """Refuse an initialisation that changed the backbone's weights and cannot be recomputed."""
    if start in (True, False, None) or start in (*_HARMLESS_STARTS, *REBUILT_STARTS):
        return
    name = str(start).partition("_niter")[0] + ("_niter" if "_niter" in str(start) else "")
    if name in _LOST_STARTS:
        msg = (
            f"The adapter was initialised with init_lora_weights={start!r}, which changed the weights of its backbone, and {_LOST_STARTS[name]}: "
            "on the plain backbone it would give other outputs. Convert it to a plain LoRA in PEFT, where it was trained: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    else:
        msg = f"The adapter is a LORA with init_lora_weights={start!r}, which is not supported. Load it with PEFT."
    raise ConfigError(msg)
