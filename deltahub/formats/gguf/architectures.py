"""The weights of a backbone as llama.cpp names and lays them out.

A LoRA in GGUF has two tensors for each weight that it changes, and llama.cpp computes

    y = W x + s B A x        A: NAME.lora_a (r, n_in), B: NAME.lora_b (n_out, r)

where W has the rows of llama.cpp's own file of the backbone. Some architectures order these rows differently than transformers:

    W[order]        order: (n_out,), the row in transformers of each row in GGUF
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, nn

from deltahub.engine.modules import own_modules
from deltahub.engine.site import uncompiled
from deltahub.errors import CheckpointError, ConfigError

EMBEDDINGS: Final = "token_embd.weight"
OUTPUT: Final = "output.weight"
# The weights on which llama.cpp applies a LoRA, without the number of the block.
_WEIGHTS: Final = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_SEPARATE: Final = ("attn_q", "attn_k", "attn_v")
Order = Callable[[str, Any, int], Tensor | None]  # of a module's last name, the backbone's config, and n_out


def _as_it_is(leaf: str, config: Any, n_out: int) -> Tensor | None:
    del leaf, config, n_out
    return None


def _rotated_in_pairs(leaf: str, config: Any, n_out: int) -> Tensor | None:
    """Order q and k for rotary embeddings that turn neighbours; transformers turns the two halves of each head."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads or config.num_attention_heads}
    if leaf not in heads:
        return None
    return torch.arange(n_out).view(heads[leaf], 2, -1).transpose(1, 2).flatten()


def _fused_by_head(leaf: str, config: Any, n_out: int) -> Tensor | None:
    """Order a fused layer with q, k, v in every head: in GGUF all q come first, then all k, then all v."""
    if leaf != "query_key_value":
        return None
    return torch.arange(n_out).view(config.num_attention_heads, 3, -1).transpose(0, 1).flatten()


# The architecture in GGUF and the order of rows, by model type of transformers. Each was compared with llama.cpp itself.
_FAMILIES: Final[Mapping[str, tuple[str, Order]]] = {
    "apertus": ("apertus", _as_it_is),
    "arcee": ("arcee", _rotated_in_pairs),
    "bloom": ("bloom", _fused_by_head),
    "cohere": ("command-r", _as_it_is),
    "cohere2": ("cohere2", _as_it_is),
    "ernie4_5": ("ernie4_5", _as_it_is),
    "gemma": ("gemma", _as_it_is),
    "gemma2": ("gemma2", _as_it_is),
    "gemma3_text": ("gemma3", _as_it_is),
    "glm4": ("glm4", _as_it_is),
    "gpt2": ("gpt2", _as_it_is),
    "gpt_neox": ("gptneox", _fused_by_head),
    "granite": ("granite", _rotated_in_pairs),
    "hunyuan_v1_dense": ("hunyuan-dense", _as_it_is),
    "llama": ("llama", _rotated_in_pairs),
    "mistral": ("llama", _rotated_in_pairs),
    "mixtral": ("llama", _rotated_in_pairs),
    "nemotron": ("nemotron", _as_it_is),
    "olmo": ("olmo", _rotated_in_pairs),
    "olmo2": ("olmo2", _as_it_is),
    "phi": ("phi2", _as_it_is),
    "phi3": ("phi3", _as_it_is),
    "qwen2": ("qwen2", _as_it_is),
    "qwen2_moe": ("qwen2moe", _as_it_is),
    "qwen3": ("qwen3", _as_it_is),
    "qwen3_moe": ("qwen3moe", _as_it_is),
    "seed_oss": ("seed_oss", _as_it_is),
    "smollm3": ("smollm3", _rotated_in_pairs),
    "stablelm": ("stablelm", _as_it_is),
    "starcoder2": ("starcoder2", _as_it_is),
}


def gguf_package() -> ModuleType:
    """Import the package gguf.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        msg = "The weights of a LoRA in GGUF need the package gguf. Install it: pip install 'deltahub[gguf]'."
        raise ConfigError(msg) from error
    return gguf


@dataclass(frozen=True)
class Architecture:
    """A backbone as llama.cpp sees it.

    Attributes:
        name: the name of its architecture in GGUF.
        weights: the modules that can have a LoRA there, by the name of their weight in GGUF.
        tied: whether the embeddings are the output layer too.
    """

    name: str
    weights: Mapping[str, str]
    tied: bool
    _config: Any
    _order: Order

    @classmethod
    def of(cls, backbone: nn.Module) -> Architecture:
        """Return the architecture of a backbone.

        Raises:
            ConfigError: it is not known, or the package gguf is missing.
        """
        gguf = gguf_package()
        model = uncompiled(backbone)
        config: Any = getattr(model, "config", None)
        model_type = str(getattr(config, "model_type", None) or type(model).__name__)
        if model_type not in _FAMILIES:
            msg = (
                f"It is not known how llama.cpp lays out the weights of a {model_type}; a LoRA in GGUF can be of {', '.join(_FAMILIES)}. "
                "Use the format of PEFT, or merge the delta and convert the whole model."
            )
            raise ConfigError(msg)
        name, order = _FAMILIES[model_type]
        number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == name)
        names = gguf.get_tensor_name_map(number, int(config.num_hidden_layers))
        tied = gguf.MODEL_TENSOR.OUTPUT not in gguf.MODEL_TENSORS[number] or _is_tied(model, config)
        return cls(name, _weights(model, names), tied, config, order)

    def module(self, weight: str) -> str:
        """Return the module of a weight in GGUF.

        Raises:
            CheckpointError: the backbone has no such weight, or llama.cpp applies no LoRA on it.
        """
        self.refuse_tied(weight)
        if weight not in self.weights:
            msg = f"The adapter acts on {weight}, which this backbone does not have, or on which llama.cpp applies no LoRA. Load its own backbone."
            raise CheckpointError(msg)
        return self.weights[weight]

    def parts(self, weight: str) -> tuple[str, ...]:
        """Return the weights that make up one in GGUF, by their rows: q, k and v may be fused there alone."""
        block, _, leaf = weight.removesuffix(".weight").rpartition(".")
        separate = tuple(f"{block}.{part}.weight" for part in _SEPARATE)
        return (
            separate
            if leaf == "attn_qkv" and weight not in self.weights and {*separate} <= {*self.weights}
            else (weight,)
        )

    def order(self, module: str, n_out: int) -> Tensor | None:
        """Return the row in transformers of each row in GGUF, ``(n_out,)``; None if they are the same."""
        return self._order(module.rpartition(".")[2], self._config, n_out)

    def refuse_tied(self, weight: str) -> None:
        """Refuse the embeddings and the output layer of a backbone where they are one weight: llama.cpp has no LoRA for it.

        Raises:
            ConfigError: the weight is one of them.
        """
        if self.tied and weight in (EMBEDDINGS, OUTPUT):
            msg = (
                f"The LoRA acts on {weight}, and the embeddings of this backbone are its output layer too, on which llama.cpp cannot apply a "
                "LoRA. Use the format of PEFT, or merge the delta and convert the whole model."
            )
            raise ConfigError(msg)


def _weights(model: nn.Module, names: Any) -> dict[str, str]:
    """Return the modules by the name of their weight in GGUF.

    Args:
        names: the map of names of the package gguf.

    Raises:
        ConfigError: two modules have one name there.
    """
    prefix = str(getattr(model, "base_model_prefix", "") or "")
    modules = [name for name, module in own_modules(model) if isinstance(getattr(module, "weight", None), Tensor)]
    within = f"{prefix}." if prefix and not any(name.startswith(f"{prefix}.") for name in modules) else ""
    weights: dict[str, str] = {}
    for module in modules:
        weight = names.get_name(f"{within}{module}.weight", (".weight",))
        if weight is None or not (weight in (EMBEDDINGS, OUTPUT) or weight.split(".")[-2] in _WEIGHTS):
            continue
        if weight in weights:
            msg = f"{module} and {weights[weight]} of this backbone are both {weight} in GGUF. Use the format of PEFT."
            raise ConfigError(msg)
        weights[weight] = module
    return weights


def _is_tied(model: nn.Module, config: Any) -> bool:
    find = (getattr(model, "get_input_embeddings", None), getattr(model, "get_output_embeddings", None))
    first, last = (getattr(get(), "weight", None) if get else None for get in find)
    return bool(getattr(config, "tie_word_embeddings", False)) or (first is not None and first is last)
