"""Writing of LoRA and IA3 for `adapters`: the reverse of `low_rank`.

`adapters` puts them on chosen matrices of every attention, and on the two layers of every feed-forward that its config switches on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.engine.shapes import linear_shape
from deltahub.engine.structure.targets import find_targets
from deltahub.errors import CheckpointError, ConfigError
from deltahub.formats.adapters.bottleneck_writing import KEEP, NAME, Written
from deltahub.formats.adapters.low_rank import FUSED, MATRICES, NUMBER, matrix_of, require_modules
from deltahub.formats.adapters.names import Backbone
from deltahub.formats.delta_tensors import Shares, Update, lora_update, of_one_rank, require_leaves
from deltahub.formats.peft.adapter import by_part

AS_LORA: Final = "Write it as a LoRA (--as-lora RANK), or keep it in DeltaHub's own format."
_BERT: Final = ("encoder.layer.*.intermediate.dense", "encoder.layer.*.output.dense")
_LLAMA: Final = ("layers.*.mlp.down_proj", "layers.*.mlp.up_proj")  # in this order
_T5: Final = (
    r"(en|de)coder.block.*.layer.*.DenseReluDense.wi(_1)?",
    r"(en|de)coder.block.*.layer.*.DenseReluDense.wo",
)
# By model type: the layers of `intermediate_lora` and of `output_lora`, with * for a number.
_FEED_FORWARD: Final[Mapping[str, tuple[str, str]]] = {
    "bert": _BERT,
    "distilbert": ("transformer.layer.*.ffn.lin1", "transformer.layer.*.ffn.lin2"),
    "electra": _BERT,
    "gpt2": ("h.*.mlp.c_fc", "h.*.mlp.c_proj"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mt5": _T5,
    "roberta": _BERT,
    "t5": _T5,
    "xlm-roberta": _BERT,
}
_DEFAULTS: Final[Mapping[str, Any]] = {
    "architecture": "lora",
    "dropout": 0.0,
    "dtype": None,
    "init_weights_seed": None,
    "use_dora": False,
    "use_gating": False,
    "vera_b": None,
    "vera_d": None,
}


def lora(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Written:
    """Return the config and the tensors of a LoRA.

    Raises:
        ConfigError: `adapters` has no equivalent.
        CheckpointError: the tensors are not those that the config announces.
    """
    for option, description in {"use_dora": "the same DoRA", "use_bias": "bias of B"}.items():
        if document.get(option):
            raise ConfigError(f"The LoRA of adapters does not have {description}. {AS_LORA}")
    updates: dict[tuple[str, str], Update] = {}
    for module, leaves in shares.items():
        parts = {"": leaves} if "lora_A" in leaves else by_part(leaves)
        for label, part in parts.items():
            updates[module, label] = lora_update(document, module, part)
    names = {" ".join(key): key for key in updates}
    rank, alpha, uniform = of_one_rank({name: updates[key] for name, key in names.items()})
    by_module: dict[str, dict[str, Update]] = {}
    for name, update in uniform.items():
        module, label = names[name]
        by_module.setdefault(module.removeprefix(backbone.base), {})[label] = update
    tensors: dict[str, Tensor] = {}
    matrices: set[frozenset[str]] = set()
    for module, own in by_module.items():
        chosen = [own[""]] if "" in own else []
        if module.rpartition(".")[2] == FUSED:
            divided = _divided(own[""]) if "" in own else own
            matrices.add(frozenset(divided))
            chosen = [divided[matrix] for matrix in MATRICES if matrix in divided]
        if not chosen:
            raise ConfigError(f"adapters has no LoRA on a part of {module}, as this one is. {KEEP}")
        tensors[f"{module}.loras.{NAME}.lora_A"] = torch.cat([part.down for part in chosen])
        tensors[f"{module}.loras.{NAME}.lora_B"] = torch.cat([part.up for part in chosen])
    where = _where(set(by_module), matrices, "lora", backbone)
    dropout = float(document.get("lora_dropout", 0.0))
    sizes = {"alpha": alpha, "composition_mode": "add", "dropout": dropout, "init_weights": "lora", "r": rank}
    return {**_DEFAULTS, **where, **sizes}, tensors


def ia3(document: Mapping[str, Any], shares: Shares, backbone: Backbone) -> Written:
    """Return the config and the tensors of an IA3.

    Raises:
        ConfigError: `adapters` has no equivalent.
        CheckpointError: the tensors are not those that the config announces.
    """
    tensors: dict[str, Tensor] = {}
    for real, leaves in shares.items():
        module = real.removeprefix(backbone.base)
        if any("." in leaf for leaf in leaves) or module.rpartition(".")[2] == FUSED:
            raise ConfigError(f"{real} is q, k and v in one, which adapters scales otherwise. {AS_LORA}")
        require_leaves({real: leaves}, {"ia3_l"})
        if document.get("feedforward_modules") and _at_input(real, document, backbone):
            raise ConfigError(f"The IA3 of adapters scales outputs, and this one scales the input of {real}. {AS_LORA}")
        n_out = linear_shape(real, backbone.modules[module])[1]
        if len(leaves["ia3_l"]) != n_out:
            raise ConfigError(f"The IA3 of adapters scales outputs, and this one scales the input of {real}. {AS_LORA}")
        tensors[f"{module}.loras.{NAME}.lora_B"] = leaves["ia3_l"][:, None]
    where = _where({name.partition(".loras.")[0] for name in tensors}, set(), "ia3", backbone)
    sizes = {"alpha": 1, "composition_mode": "scale", "init_weights": "ia3", "r": 1}
    return {**_DEFAULTS, **where, **sizes}, tensors


def _at_input(real: str, document: Mapping[str, Any], backbone: Backbone) -> bool:
    """Return whether the vector of a layer scales its input."""
    patterns, exclude = document["feedforward_modules"], document.get("exclude_modules") or ()
    found = find_targets(backbone.model, patterns, exclude, document.get("common_structure"), optional=patterns)
    return real in {target.name for target in found}


def _divided(update: Update) -> dict[str, Update]:
    """Divide the update of a layer that is q, k and v in one into three."""
    ups = update.up.chunk(len(MATRICES))
    return {matrix: Update(update.down, up, update.scale) for matrix, up in zip(MATRICES, ups, strict=True)}


def _where(modules: set[str], fused: set[frozenset[str]], kind: str, backbone: Backbone) -> dict[str, Any]:
    """Return the fields that put a method on these layers alone.

    Args:
        modules: the layers, relative to the base model.
        fused: the parts of each layer that is q, k and v in one.

    Raises:
        ConfigError: there are none.
    """
    if backbone.model_type not in _FEED_FORWARD:
        msg = f"It is not known where adapters puts a {kind} in a {backbone.model_type}; it is for {', '.join(_FEED_FORWARD)}. {KEEP}"
        raise ConfigError(msg)
    patterns = {module: NUMBER.sub("*", module, count=1) for module in modules}
    kinds = {module: matrix_of(pattern) for module, pattern in patterns.items()}
    matrices = {found for found in kinds.values() if found and found != FUSED}.union(*fused)
    flags = {}
    for flag, layers in zip(("intermediate_lora", "output_lora"), _FEED_FORWARD[backbone.model_type], strict=True):
        expression = re.compile(layers.replace(".", r"\.").replace(r"*", r"\d+"))
        own = {name for name in backbone.modules if expression.fullmatch(name)}
        flags[flag] = bool(own & modules)
        kinds |= dict.fromkeys(own & modules, flag)
    config = {
        "attn_matrices": [matrix for matrix in MATRICES if matrix in matrices] or ["q", "v"],
        "selfattn_lora": bool(matrices),
        **flags,
    }
    outputs = [place.output for place in backbone.family.places]
    numbers = {backbone.number(output, layer) for output in outputs for layer in backbone.layers(output)}
    present = {backbone.number(pattern, _layer(module)) for module, pattern in patterns.items()}
    config["leave_out"] = sorted(numbers - present)
    fits = all(kinds.values()) and len(fused) < 2
    try:
        require_modules(config, modules, backbone)
    except CheckpointError:
        fits = False
    if not fits:
        msg = (
            f"The {kind} acts on {backbone.real(min(modules))} and others, {len(modules)} layers in all. adapters puts one on chosen "
            "matrices of every attention (q, k, v) and on all first or second layers of the feed-forward, in all layers but some, and no "
            f"such choice is these layers of a {backbone.model_type}. {KEEP}"
        )
        raise ConfigError(msg)
    return config


def _layer(module: str) -> int:
    found = NUMBER.search(module)
    return int(found[0]) if found else 0
