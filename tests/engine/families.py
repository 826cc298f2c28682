"""Tiny random models of many families that have no explicit structure map."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.backbones import built_once

_TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 4}
_SEQUENCE = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_IMAGE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
_CLIP = {**_IMAGE, "projection_dim": 16}
_GPT = {
    "vocab_size": 60,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("AlbertModel", {**_TEXT, "embedding_size": 16}),
    "bloom": ("BloomModel", {"vocab_size": 60, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "bigcode": ("GPTBigCodeModel", _GPT),
    "bigcode_by_head": ("GPTBigCodeModel", {**_GPT, "multi_query": False}),
    "clip": ("CLIPModel", {"text_config": _TEXT, "vision_config": _CLIP, "projection_dim": 16}),
    "codegen": ("CodeGenModel", {**_GPT, "rotary_dim": 4, "n_inner": 24}),
    "deberta": ("DebertaModel", _TEXT),
    "deepseek_v3": (
        "DeepseekV3Model",
        {**_TEXT, **_LATENT, "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 4, "n_group": 1}
        | {"topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    ),
    "electra": ("ElectraModel", {**_TEXT, "embedding_size": 16}),
    "falcon": ("FalconModel", {**_TEXT, "multi_query": True, "new_decoder_architecture": False}),
    "falcon_by_head": ("FalconModel", {**_TEXT, "multi_query": False, "new_decoder_architecture": False}),
    "falcon_by_group": ("FalconModel", {**_TEXT, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "fnet": ("FNetModel", _TEXT),
    "gemma2": ("Gemma2Model", _GROUPED),
    "gemma3": ("Gemma3TextModel", _GROUPED),
    "glm": ("GlmModel", _GROUPED),
    "gpt_neo": (
        "GPTNeoModel",
        {**_TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": ("GPTNeoXModel", _TEXT),
    "gptj": ("GPTJModel", {**_GPT, "rotary_dim": 4}),
    "layoutlm": ("LayoutLMModel", {**_TEXT, "max_2d_position_embeddings": 32}),
    "longformer": ("LongformerModel", {**_TEXT, "attention_window": 4}),
    "mamba": ("MambaModel", {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
    "marian": ("MarianModel", _SEQUENCE),
    "mbart": ("MBartModel", _SEQUENCE),
    "mixtral": ("MixtralModel", {**_GROUPED, **_EXPERTS}),
    "modernbert": ("ModernBertModel", {**_TEXT, "reference_compile": False}),
    "mpt": ("MptModel", {"vocab_size": 60, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 32}),
    "mt5": (
        "MT5Model",
        {"vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4, "pad_token_id": 0},
    ),
    "openai": ("OpenAIGPTModel", _GPT),
    "pegasus": ("PegasusModel", _SEQUENCE),
    "phi3": ("Phi3Model", _GROUPED),
    "qwen2_moe": ("Qwen2MoeModel", {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3": ("Qwen3Model", _GROUPED),
    "resnet": ("ResNetModel", {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]}),
    "swin": (
        "SwinModel",
        {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
    "wav2vec2": (
        "Wav2Vec2Model",
        {**_TEXT, "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [8, 8], "num_conv_pos_embeddings": 4}
        | {"num_conv_pos_embedding_groups": 2},
    ),
    "wavlm": (
        "WavLMModel",
        {**_TEXT, "conv_dim": [8, 8], "conv_stride": [4, 4], "conv_kernel": [8, 8], "num_conv_pos_embeddings": 4}
        | {"num_conv_pos_embedding_groups": 2},
    ),
    "whisper": (
        "WhisperModel",
        {**_SEQUENCE, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16},
    ),
    "xlm_roberta": ("XLMRobertaModel", _TEXT),
}


@built_once
def family(name: str) -> nn.Module:
    """A tiny model of a family, with weights large enough that nothing hides below rounding."""
    kind, sizes = SIZES[name]
    cls: Any = getattr(transformers, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(cls.config_class(**sizes))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def inputs_of(model: nn.Module, length: int = 6) -> dict[str, Tensor]:
    """One row that a model understands."""
    draw = torch.Generator().manual_seed(1)
    main = model.main_input_name
    if main == "pixel_values":
        return {"pixel_values": torch.randn(1, 3, model.config.image_size, model.config.image_size, generator=draw)}
    if main == "input_values":
        return {"input_values": torch.randn(1, 400, generator=draw)}
    tokens = torch.randint(3, 60, (1, length), generator=draw)
    if main == "input_features":
        return {"input_features": torch.randn(1, 8, 20, generator=draw), "decoder_input_ids": tokens}
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    if model.config.model_type == "clip":
        inputs["pixel_values"] = torch.randn(1, 3, 8, 8, generator=draw)
    return inputs


def run(model: nn.Module, length: int = 6) -> Tensor:
    """All that a model returns, in one row."""

    def tensors(output: Any) -> list[Tensor]:
        if isinstance(output, Tensor):
            return [output.float().flatten()] if output.is_floating_point() else []
        values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
        return [tensor for value in values for tensor in tensors(value)]

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return torch.cat(tensors(model(**inputs_of(model, length))))
