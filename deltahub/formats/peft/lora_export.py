"""Conversion of a delta's LoRA and DoRA to PEFT's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.checkpoint.address import rank_and_scale
from deltahub.errors import ConfigError
from deltahub.formats.backbone import ASK, Backbone
from deltahub.formats.peft.adapter import Exported, by_part, named, whole_width
from deltahub.formats.peft.attention_export import attention_tensors, is_attention, rows_of
from deltahub.formats.peft.lora_reading import has_same_patches
from deltahub.formats.peft.module_matching import target_names
from deltahub.formats.peft.parameter_export import parameter_names, parameter_tensors, split_parameters, stacked

_MAMBAS: Final = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_MAMBA_READS: Final = frozenset({"conv1d", "out_proj"})  # kernels read the weights of these layers directly
_EXPERTS: Final = frozenset({"down_proj", "gate", "gate_proj", "up_proj", "w1", "w2", "w3"})
_LORA: Final[Mapping[str, Any]] = {
    "alpha_pattern": {},
    "exclude_modules": None,
    "init_lora_weights": True,
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_bias": False,
    "rank_pattern": {},
}


def lora(document: Mapping[str, Any], shares: Mapping[str, dict[str, Tensor]], backbone: Backbone) -> Exported:
    """Convert a LoRA to an adapter.

    Args:
        document: the delta's config.
        shares: the delta's tensors by module.

    Raises:
        ConfigError: PEFT has no equivalent, or the backbone is needed.
    """
    shares, parameters = split_parameters(shares, backbone)
    _refuse_names(set(shares), backbone)
    rank, alpha = int(document.get("lora_r", 8)), float(document.get("lora_alpha", 16))
    use_dora, use_rslora = bool(document.get("use_dora")), bool(document.get("use_rslora"))
    fused = {module: by_part(leaves) for module, leaves in shares.items() if "lora_A" not in leaves}
    tensors: dict[str, Tensor] = {}
    if fused and (use_dora or document.get("use_bias")):
        kind = "DoRA" if use_dora else "LoRA with a bias of B"
        msg = f"PEFT has no {kind} on a part of a layer, and this one acts on {next(iter(fused))} so. Load it with deltahub."
        raise ConfigError(msg)
    ranks, alphas = document.get("rank_pattern") or {}, document.get("alpha_pattern") or {}
    attentions = {module for module in fused if is_attention(module, backbone)}
    stacks = {name: stacked(name, leaves, backbone) for name, leaves in parameters.items()}
    joins = [rows_of(parts) if m in attentions else len(parts) for m, parts in fused.items()]
    file_rank = max([1, *joins, *(stack.parts for stack in stacks.values())]) * rank
    updates: dict[str, int] = {name: stack.rank for name, stack in stacks.items()}
    for module, leaves in shares.items():
        if module in attentions:
            size = rows_of(fused[module]) * rank_and_scale(document, module)[0] if ranks or alphas else file_rank
            updates[module] = size
            tensors |= attention_tensors(module, fused[module], backbone, size)
            continue
        down, up = joined(module, fused[module], backbone) if module in fused else (leaves["lora_A"], leaves["lora_B"])
        extra = 0 if ranks or alphas else file_rank - down.shape[0]  # servers want one rank for all layers
        updates[module] = down.shape[0]
        down, up = (
            (torch.nn.functional.pad(down, (0, 0, 0, extra)), torch.nn.functional.pad(up, (0, extra)))
            if extra
            else (down, up)
        )
        tensors |= _layer_tensors(module, down, up, leaves, document, backbone)
    widths = {name: 0 if ranks or alphas else file_rank - stack.rank for name, stack in stacks.items()}
    tensors |= parameter_tensors(stacks, widths, backbone)
    if file_rank != rank:  # keep the scale, whatever the new rank
        alpha, use_rslora = alpha / (math.sqrt(rank) if use_rslora else rank) * file_rank, False
    options = {
        **_LORA,
        **(_patterns(document, updates, file_rank, alpha, use_rslora=use_rslora) if ranks or alphas else {}),
        "bias": "none",
        "fan_in_fan_out": any(map(backbone.is_turned, shares)) and not parameters,  # PEFT looks at the layer itself
        "lora_bias": bool(document.get("use_bias")),
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": float(document.get("lora_dropout", 0.0)),
        "r": file_rank,
        "target_modules": target_names(shares, {*backbone.modules, *shares}) if shares else [],
        **({"target_parameters": parameter_names(parameters, backbone)} if parameters else {}),
        "use_dora": use_dora,
        "use_rslora": use_rslora,
    }
    return Exported("LORA", options, named(tensors))


def _layer_tensors(
    module: str, down: Tensor, up: Tensor, leaves: Mapping[str, Tensor], document: Mapping[str, Any], backbone: Backbone
) -> dict[str, Tensor]:
    """Return the tensors of a LoRA at one layer by PEFT's names.

    Args:
        down: A, ``(r, n_in)``.
        up: B, ``(n_out, r)``.
        leaves: the delta's tensors there.

    Raises:
        ConfigError: PEFT computes another update there.
    """
    if len(kernel := backbone.shapes.get(f"{module}.weight", ())) > 2:  # a convolution; B is one of single points
        _refuse_patches(module, backbone)
        down, up = down.view(-1, *kernel[1:]), up.view(*up.shape, *[1] * (len(kernel) - 2))
    elif backbone.is_embedding(module, down.shape[1], up.shape[0]):
        _refuse_unscaled(document, module, backbone)
        return {f"{module}.lora_embedding_A": down, f"{module}.lora_embedding_B": up}
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    if "lora_bias" in leaves:
        tensors[f"{module}.lora_B.bias"] = leaves["lora_bias"]
    if document.get("use_dora"):
        tensors[f"{module}.lora_magnitude_vector"] = leaves["lora_magnitude_vector"]
    return tensors


def _patterns(
    document: Mapping[str, Any], updates: Mapping[str, int], file_rank: int, alpha: float, *, use_rslora: bool
) -> dict[str, Any]:
    """Return `rank_pattern` and `alpha_pattern` in PEFT's form.

    Args:
        updates: the rank of each module in the file.
        file_rank: the rank of all other modules.
        alpha: the alpha of all other modules.
        use_rslora: the value in the file; the delta's own config may set it where the file does not.
    """
    patterns: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    for module, size in updates.items():
        _, scale = rank_and_scale(document, module)
        module_alpha = scale * (math.sqrt(size) if use_rslora else size)
        # A pattern also matches ends of names, unless "^" anchors it to the start.
        pattern = f"{'^' * any(other_module.endswith(f'.{module}') for other_module in updates)}{re.escape(module)}"
        if size != file_rank:
            patterns["rank_pattern"][pattern] = size
        if module_alpha != alpha:
            patterns["alpha_pattern"][pattern] = module_alpha
    return patterns


def joined(module: str, shares: Mapping[str, Mapping[str, Tensor]], backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Join the updates of some parts of a layer into one of the whole layer: ``(k r, n_in)`` and ``(n_out, k r)``."""
    parts = backbone.parts(module, shares)
    first = next(iter(shares))
    n_out = whole_width(shares[first]["lora_B"].shape[0], parts[first])
    up = torch.block_diag(*(share["lora_B"] for share in shares.values()))  # type: ignore[no-untyped-call]
    rows = torch.cat([parts[label].rows(n_out) for label in shares])
    placed = up.new_zeros(n_out, up.shape[1])
    placed[rows] = up
    return torch.cat([share["lora_A"] for share in shares.values()]), placed


def _refuse_unscaled(document: Mapping[str, Any], module: str, backbone: Backbone) -> None:
    """Refuse a LoRA of a release that left out the scale of an embedding, which PEFT applies.

    Raises:
        ConfigError: the LoRA is of such a release; the message names the embedding.
    """
    layer = backbone.module(module)
    if str(document.get("deltahub_version", "")).startswith("0.1.") and getattr(layer, "embed_scale", None) is not None:
        msg = (
            f"The delta is of deltahub {document['deltahub_version']}, which did not multiply the LoRA on {module} by that embedding's scale, "
            "as PEFT does. Train it again, or load it with the release that saved it."
        )
        raise ConfigError(msg)


def _refuse_patches(module: str, backbone: Backbone) -> None:
    """Refuse a convolution with groups, dilation or padding other than zeros, for which PEFT computes another update.

    Raises:
        ConfigError: it is one, or the backbone is needed to know.
    """
    layer = backbone.module(module)
    if layer is None:
        msg = f"{module} is a convolution, and PEFT's LoRA fits only some kinds. {ASK}"
        raise ConfigError(msg)
    if not has_same_patches(layer):
        msg = f"PEFT has no LoRA for {module}, a {type(layer).__name__} with groups, dilation or padding other than zeros. Load it with deltahub."
        raise ConfigError(msg)


def _refuse_names(modules: set[str], backbone: Backbone) -> None:
    """Refuse layers whose names PEFT rejects, or mistakes for others, in some families of models.

    Raises:
        ConfigError: there is such a layer; the message names the first.
    """
    config = getattr(backbone.model_or_stand_in, "config", None)
    family = str(getattr(config, "model_type", ""))
    refused = _MAMBA_READS if family in _MAMBAS else _EXPERTS if _has_moved_experts(family) else frozenset()
    if taken := sorted(module for module in modules if module.rpartition(".")[2] in refused):
        msg = f"PEFT has no LoRA on {taken[0]} of a {backbone.class_name}, whose name means something else to it. Load it with deltahub."
        raise ConfigError(msg)
    if refused is _EXPERTS and isinstance(target_names(modules, {*backbone.modules, *modules}), str):
        msg = f"PEFT has no names that mean {min(modules)} of a {backbone.class_name} alone. Load it with deltahub."
        raise ConfigError(msg)


def _has_moved_experts(family: str) -> bool:
    """Return whether PEFT takes a family's layer names for those of earlier releases, where each expert had its own layers."""
    from transformers import conversion_mapping

    table = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    return family == "mixtral" or table.get(family) in ("mixtral", "qwen2_moe")
