"""Where a config's sizes depend on each other in a way that its names do not tell."""

from __future__ import annotations

from typing import Any, Final

_ROTARY: Final = {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 1, 1]}}
_HALF_ROTARY: Final = {
    "rope_parameters": {
        "rope_theta": 10000.0,
        "rope_type": "default",
        "partial_rotary_factor": 1.0,
        "mrope_section": [2, 1, 1],
    }
}
_SERIES: Final = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1}
_LATENT: Final = {"head_dim": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
_WINDOW: Final = {"image_size": 64, "patch_size": 4, "window_size": 4}

OVERRIDES: Final[dict[str, dict[str, Any]]] = {
    **dict.fromkeys(("glm4v_text", "glm_ocr_text", "glm_image_text", "qwen2_vl_text", "glm4v_moe_text"), _HALF_ROTARY),
    **dict.fromkeys(
        (
            *(
                "glm4v",
                "glm46v",
                "glm_ocr",
                "glm_image",
                "qwen2_vl",
                "qwen2_5_vl",
                "paddleocr_vl",
                "glmga",
                "glm4v_moe",
            ),
            *("video_llama_3", "kimi_k25"),
        ),
        {"text_config": _HALF_ROTARY},
    ),
    "colqwen2": {"vlm_config": {"text_config": _ROTARY}},
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), _SERIES),
    **dict.fromkeys(("swin", "swinv2", "donut-swin", "maskformer-swin", "swin2sr"), _WINDOW),
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh"],
        "num_hashes": 1,
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
    },
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {"intermediate_size": 48, "activation_sparsity_pattern": [0.0, 0.0], "num_kv_shared_layers": 0},
    "gemma3n": {
        "text_config": {"intermediate_size": 48, "activation_sparsity_pattern": [0.0, 0.0], "num_kv_shared_layers": 0}
    },
    "glm5_next_text": {"num_key_value_heads": 4},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "esm": {"vocab_size": 40, "pad_token_id": 1, "mask_token_id": 2, "position_embedding_type": "rotary"},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "max_2d_position_embeddings": 64},
    "layoutlm": {"max_2d_position_embeddings": 64},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48, "max_2d_position_embeddings": 64},
    "bros": {"dim_bbox_sinusoid_emb_2d": 8, "bbox_scale": 1.0, "dim_bbox_projection": 8},
    "blip-2": {"image_token_index": 100},
    "mistral4": {"num_key_value_heads": 4},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4},
    "patchtst": {"context_length": 32, "num_input_channels": 2},
    "patchtsmixer": {"context_length": 32, "num_input_channels": 2},
    "kyutai_speech_to_text": {"num_codebooks": 32},
    "encodec": {"hidden_size": 128},
    "decision_transformer": {"n_inner": 48},
    "depth_pro": {"patch_size": 16, "image_size": 64},
    "pvt": {"hidden_sizes": [16, 32, 48, 64], "image_size": 64, "patch_sizes": [4, 2, 2, 2]},
    "bit": {"num_groups": 8, "embedding_size": 16},
    "bridgetower": {"text_config": {"num_attention_heads": 4}, "vision_config": {"num_hidden_layers": 2}},
    "dbrx": {"d_model": 32, "n_heads": 4, "attn_config": {"kv_n_heads": 2}},
    "granite_speech5_encoder": {"context_size": 16},
    "granite_speech5_ctc": {"encoder_config": {"context_size": 16}},
}
