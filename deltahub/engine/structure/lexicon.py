"""The names that architectures give to the parts of a transformer block."""

from __future__ import annotations

import re
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Last elements of the names of linear layers inside an attention.
ROLES: Final[dict[str, frozenset[str]]] = {
    "q": _words(
        "q q_proj project_q projection_query query query_proj q_lin wq Wq to_q linear_q q_linear q_head q_b_proj query_layer proj_q lin_q fc_q"
    ),
    "k": _words(
        "k k_proj project_k projection_key key key_proj k_lin wk Wk to_k linear_k k_linear k_head key_layer proj_k lin_k fc_k"
    ),
    "v": _words(
        "v v_proj project_v projection_value value value_proj v_lin wv Wv to_v linear_v v_linear v_head value_layer proj_v lin_v fc_v"
    ),
    "proj": _words(
        "o o_proj out_proj output_proj dense proj out_lin c_proj wo Wo to_out linear_out attn_out post_proj final_linear "
        "out_linear output_linear o_linear output projection output_dense linear_o proj_o fc_o project fc_out o_b_proj attention_out"
    ),
}
FUSED: Final = _words(
    "qkv qkv_proj query_key_value c_attn Wqkv in_proj qkv_linear att_proj kv_proj to_kv key_value kv qk_proj kv_b_proj "
    "to_qkv in_proj_qkv wqkv proj_qkv"
)
CROSS: Final = re.compile(r"cross|enc_?dec|encoder_attn|encoder_decoder|image_attn|img_attn|src_attn", re.IGNORECASE)

# Last elements of the names of modules that hold a feed-forward, or one of its layers.
FEED_FORWARD: Final = re.compile(
    r"(^|_)(mlp|mlps|ff|ffn|ffns|feed_forward\w*|feedforward\w*|pffn|fc|densereludense|macaron_ff\w*)(_?\d)?$|^ffn_?\w*$|^mlp_\w*$|^(block_sparse_|sparse_)?moe(_block|_layer)?$",
    re.IGNORECASE,
)
# Names of the layers of a feed-forward, relative to the module that holds them: first, second, gate.
FORWARDS: Final[tuple[tuple[str, str, str | None], ...]] = (
    ("up_proj", "down_proj", "gate_proj"),
    ("w3", "w2", "w1"),
    ("wi_1", "wo", "wi_0"),
    ("w_1", "w_2", None),
    ("w1", "w2", "v1"),
    ("fc1_x", "fc2", "fc1_g"),
    ("linear_v", "linear_1", "linear"),
    ("up", "down", "gate"),
    ("up_layer", "down_layer", "gate_layer"),
    ("fc1", "fc2", None),
    ("fc_1", "fc_2", None),
    ("c_fc", "c_proj", None),
    ("c_fc_1", "c_proj", "c_fc_0"),
    ("dense_h_to_4h", "dense_4h_to_h", None),
    ("lin1", "lin2", None),
    ("linear1", "linear2", None),
    ("linear_1", "linear_2", None),
    ("linear_in", "linear_out", None),
    ("layer1", "layer2", None),
    ("layer_1", "layer_2", None),
    ("dense1", "dense2", None),
    ("fc_in", "fc_out", None),
    ("up_proj", "down_proj", None),
    ("wi", "wo", None),
    ("Wi", "Wo", None),
    ("w_in", "w_out", None),
    ("proj_in", "proj_out", None),
    ("intermediate_dense", "output_dense", None),
    ("intermediate.dense", "output.dense", None),
    ("intermediate_query.dense", "output_query.dense", None),
    ("in_proj", "out_proj", None),
    ("layers.0", "layers.1", None),
    ("intermediate_proj", "output_proj", None),
    ("ffn", "ffn_output", None),
    ("expand", "contract", None),
    ("input_linear", "output_linear", None),
    ("conv1", "conv2", None),
    ("0", "2", None),
    ("0", "3", None),
    ("net.0.proj", "net.2", None),
    ("dense_in", "dense_out", None),
    ("0.dense", "1.dense", None),
)
# One layer for gate and first together, and the second.
GATE_AND_UP: Final[tuple[tuple[str, str], ...]] = (
    ("gate_up_proj", "down_proj"),
    ("Wi", "Wo"),
    ("up_gated_layer", "wo"),
    ("input_linear", "output_linear"),
    ("fc1", "fc2"),
    ("w12", "w3"),
    ("weights_in", "weights_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("up_proj", "down_proj"),
    ("ff_proj", "ff_out"),
)
NOT_ATTENTION: Final = re.compile(r"(^|_)indexer$")
EXPERTS: Final = re.compile(r"^experts?$|_experts?$|^router$")
