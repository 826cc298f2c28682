"""Every architecture of transformers as a tiny random model: sizes by the names that configs give them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto

from deltahub.engine.pseudo import possible_inputs

WIDTH, HEADS, HEAD, FEED_FORWARD, LAYERS, VOCABULARY, POSITIONS = 32, 4, 8, 48, 2, 128, 64

_SIZES: Final[dict[str, int]] = {
    **dict.fromkeys(
        (
            "hidden_size d_model n_embd dim embed_dim hidden_dim model_dim embedding_size emb_dim width n_embed d_embed "
            "embedding_dim decoder_hidden_size encoder_hidden_size hidden_dims decoder_dim encoder_dim "
            "projection_dim text_embed_dim vision_embed_dim attention_hidden_size d_hidden output_dim "
            "proj_dim projection_size out_hidden_size mm_hidden_size lstm_dim lru_width text_hidden_size "
            "encoder_hidden_dim decoder_hidden_dim dec_dim backbone_hidden_size attention_dim entity_emb_size "
            "qformer_hidden_size vision_hidden_size input_dim_text adapter_hidden_size fused_hidden_size "
            "hidden_size_per_layer_input text_dim connector_hidden_size cross_attention_hidden_size"
        ).split(),
        WIDTH,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
            "num_decoder_layers depth depths layers num_blocks num_hidden_blocks num_layers_per_block "
            "encoder_num_hidden_layers decoder_num_hidden_layers num_encoder_blocks"
        ).split(),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "encoder_num_attention_heads decoder_num_attention_heads attention_heads num_encoder_heads "
            "num_decoder_heads encoder_num_heads decoder_num_heads"
        ).split(),
        HEADS,
    ),
    **dict.fromkeys(
        (
            "num_key_value_heads num_kv_heads n_kv_heads kv_n_heads encoder_num_key_value_heads "
            "decoder_num_key_value_heads num_global_key_value_heads"
        ).split(),
        2,
    ),
    **dict.fromkeys(
        (
            "head_dim d_kv attention_head_dim d_head attention_head_size head_size kv_channels "
            "swa_head_dim global_head_dim qk_head_dim"
        ).split(),
        HEAD,
    ),
    **dict.fromkeys(
        (
            "intermediate_size d_ff ffn_dim n_inner encoder_ffn_dim decoder_ffn_dim d_inner ffn_hidden_size "
            "intermediate_dim dim_feedforward decoder_intermediate_size moe_intermediate_size mlp_dim "
            "shared_expert_intermediate_size intermediate_size_mlp encoder_intermediate_size ffn_size "
            "decoder_ffn_hidden_size ffn_intermediate_size feedforward_dim"
        ).split(),
        FEED_FORWARD,
    ),
    **dict.fromkeys(
        (
            "vocab_size encoder_vocab_size decoder_vocab_size vocab_size_per_layer_input text_vocab_size audio_vocab_size "
            "entity_vocab_size speech_vocab_size codebook_size"
        ).split(),
        VOCABULARY,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings n_positions n_ctx max_seq_len seq_length max_source_positions "
            "max_target_positions block_size max_sequence_length max_2d_position_embeddings max_seq_length"
        ).split(),
        POSITIONS,
    ),
    **dict.fromkeys("num_experts n_routed_experts num_local_experts moe_num_experts".split(), 4),  # noqa: SIM905
    **dict.fromkeys("num_experts_per_tok moe_k num_experts_per_token moe_top_k".split(), 2),  # noqa: SIM905
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "rotary_dim": 4,
    "image_size": 32,
    "input_size": 32,
    "crop_size": 32,
    "patch_size": 8,
    "window_size": 4,
    "num_queries": 6,
    "num_query_tokens": 6,
    "state_size": 8,
    "pretrain_image_size": 32,
    "dropout": 0,
}
_ZERO: Final = ("dropout", "drop_rate", "drop_path", "dropout_prob", "layerdrop", "dropout_rate")
_WIDTH_LISTS: Final = (
    "hidden_sizes",
    "embed_dims",
    "encoder_hidden_size",
    "decoder_hidden_sizes",
    "block_out_channels",
)
_TOKEN_IDS: Final = ("_token_id", "_token_index", "_idx")


def shrink(document: dict[str, Any]) -> dict[str, Any]:
    """The same config with small sizes, sub-configs too."""
    small = {key: _shrunk(key, value) for key, value in document.items() if key not in _NOT_OPTIONS}
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small.get("num_attention_heads", HEADS)  # a latent attention has as many
    layers = document.get("num_hidden_layers")
    for key, value in small.items():
        if isinstance(value, list) and isinstance(layers, int) and len(value) == layers > LAYERS:
            small[key] = value[:LAYERS]  # one entry for each layer
    return small


_NOT_OPTIONS: Final = (
    *("transformers_version", "architectures", "_name_or_path", "model_type", "id2label", "label2id"),
    *("out_features", "out_indices", "_out_features", "_out_indices", "stage_names", "per_layer_config"),
)


def _shrunk(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        if "rope" in key:
            return {k: v for k, v in value.items() if not k.startswith("mrope")} | _mrope(value)
        return shrink(value) | ({"model_type": value["model_type"]} if "model_type" in value else {})
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float) and key.endswith(_ZERO):
        return 0.0
    if isinstance(value, int):
        if key.endswith(_TOKEN_IDS) and value >= VOCABULARY:
            return (
                100 + sum(map(ord, key)) % 27
            )  # apart from each other and from what inputs hold, as far as a sum goes
        return min(value, _SIZES[key]) if key in _SIZES else value
    if (
        isinstance(value, (list, tuple))
        and value
        and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    ):
        if key in ("depths", "num_layers", "layer_depths", "stage_layers", "num_blocks"):
            return type(value)([1] * len(value))
        if key in _WIDTH_LISTS or key == "hidden_size":
            return type(value)(16 * (1 + min(i, 3)) for i in range(len(value)))
        if key in ("num_attention_heads", "num_heads"):
            return type(value)([2] * len(value))
        if key in ("image_size", "input_size", "patch_size"):
            return type(value)(min(v, _SIZES[key]) for v in value)
    if isinstance(value, list) and key in ("layer_types", "mlp_layer_types", "layers_block_type") and value:
        kinds = list(dict.fromkeys(value))
        return (kinds * LAYERS)[: max(LAYERS, 0)]
    return value


def _mrope(value: dict[str, Any]) -> dict[str, Any]:
    return {"mrope_section": [2, 1, 1]} if "mrope_section" in value else {}


def model_class(model_type: str) -> Any:
    """The class that transformers makes a model of this type with: the bare one where there is one."""
    names = [modeling_auto.MODEL_MAPPING_NAMES.get(model_type)]
    for mapping in sorted(
        name for name in dir(modeling_auto) if name.endswith("_MAPPING_NAMES") and not name.startswith("CONFIG")
    ):
        names.append(getattr(modeling_auto, mapping).get(model_type))
    for name in names:
        name = name[0] if isinstance(name, (tuple, list)) else name
        if name and name != "TimmWrapperModel" and (found := getattr(transformers, name, None)) is not None:
            return found
    return None


def config_of(model_type: str) -> PretrainedConfig:
    """A small config of a type."""
    cls = configuration_auto.CONFIG_MAPPING[model_type]
    from tiny_overrides import OVERRIDES

    options = shrink(cls().to_dict())
    return cls(**merge(options, OVERRIDES.get(model_type, {})))


def merge(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`options` with `changes`, sub-configs merged."""
    merged = dict(options)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def make(model_type: str, seed: int = 0) -> nn.Module:
    """A tiny random model of a type, in evaluation mode, with weights large enough that nothing hides below rounding."""
    config = config_of(model_type)
    config._attn_implementation = "eager"
    cls = model_class(model_type)
    torch.manual_seed(seed)
    model = cls(config)
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            nn.init.normal_(parameter, std=0.2)
    return model.eval().requires_grad_(
        False
    )  # PyTorch takes another path through some layers where gradients may be asked


def model_types() -> list[str]:
    """The types that an auto class of transformers makes a model of."""
    return [name for name in configuration_auto.CONFIG_MAPPING_NAMES if model_class(name) is not None]


def copy_of(model: nn.Module) -> nn.Module:
    """A model of its own with the same weights."""
    return copy.deepcopy(model)


def working_inputs(model: nn.Module) -> dict[str, Any]:
    """Real inputs that a model runs on: those that the config alone tells.

    Raises:
        RuntimeError: it runs on none of them.
    """
    failure: Exception | None = None
    for shapes in possible_inputs(model, batch=2, length=7):
        inputs = {name: _values(name, like) for name, like in shapes.items()}
        try:
            output_of(model, inputs)
        except Exception as error:  # noqa: BLE001  # a model may fail in any way
            failure = failure or error
        else:
            return inputs
    msg = f"no forward pass: {type(failure).__name__}: {failure}"
    raise RuntimeError(msg) from failure


def _values(name: str, like: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    if name == "bbox":
        return torch.arange(4).expand(like.shape).contiguous()
    if not like.is_floating_point():
        return torch.randint(3, 30, like.shape, generator=draw)
    return torch.randn(like.shape, generator=draw)


def output_of(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """All numbers that a model returns, in one row; randomness, where a model has some, is the same each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        found = [tensor.float().flatten() for tensor in _tensors(model(**inputs))]
    if not found:
        msg = "returns no numbers"
        raise TypeError(msg)
    row = torch.cat(found)
    if not row.isfinite().any():
        msg = "returns no finite numbers"
        raise ValueError(msg)
    return row.nan_to_num()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, list, tuple)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(value)
