"""Conversion of LoRA, and of IA3, which `adapters` keeps as a LoRA that multiplies.

    add      y = W x + b + s B A x        s = alpha / r
    DoRA     y = c (W x + b + s B A x)    c = m / ||W + B A||
    scale    y = l (W x + b)              l: lora_B, (n_out, 1)

DoRA here leaves the bias alone and has ||W + s B A|| instead: the bias c b becomes a trained tensor, and m is converted.

A layer that is q, k and v in one holds one update for each of those that are trained: A (k r, n_in), B (k n_out / 3, r).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.engine.fingerprint import backbone_values
from deltahub.engine.layers import weight_fault
from deltahub.engine.quantised.kinds import quantised
from deltahub.engine.shapes import is_conv1d, linear_shape
from deltahub.engine.site import delta_key
from deltahub.engine.structure.names import StructureMap
from deltahub.errors import CheckpointError
from deltahub.formats.adapters.fields import unsupported
from deltahub.formats.adapters.names import (
    Backbone,
    refuse_others,
    require_leaves,
    require_places,
    sorted_leaves,
)

Converted = tuple[dict[str, Any], dict[str, Tensor]]
MATRICES: Final = {  # the last part of the names of the layers
    "q": ("q", "q_lin", "q_proj", "query"),
    "k": ("k", "k_lin", "k_proj", "key"),
    "v": ("v", "v_lin", "v_proj", "value"),
}
FUSED: Final = "c_attn"
NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def low_rank(config: Mapping[str, Any], saved: Mapping[str, Tensor], backbone: Backbone) -> Converted:
    """Convert a LoRA or IA3 to options and tensors of a delta.

    Raises:
        ConfigError: no delta computes the same.
        CheckpointError: the file is damaged, or does not fit the backbone.
    """
    mode, rank = config.get("composition_mode", "add"), config.get("r", 8)
    if mode not in ("add", "scale"):
        raise unsupported("lora", "composition_mode", mode, "expected add or scale")
    leaves, others = sorted_leaves(saved, "loras", backbone)
    refuse_others(others)
    require_modules(config, set(leaves), backbone)
    if mode == "scale":
        if rank != 1 or config.get("alpha", 1) != 1:
            setting = next(key for key in ("r", "alpha") if config.get(key, 1) != 1)
            raise unsupported("lora", setting, config[setting], "with composition_mode=scale it is 1 in every IA3")
        return _ia3(leaves, config, backbone)
    use_dora = bool(config.get("use_dora"))
    options = {
        "delta_type": "lora",
        "lora_alpha": config.get("alpha", 8),
        "lora_dropout": float(config.get("dropout") or 0.0),
        "lora_r": rank,
        "use_dora": use_dora,
        "common_structure": None,
    }
    scale = float(options["lora_alpha"]) / rank
    plain = dict(backbone_values(backbone.model)) if use_dora else {}
    tensors: dict[str, Tensor] = {}
    addresses: list[str] = []
    for module, own in sorted(leaves.items()):
        for address, part, shape, values in _updates(module, own, rank, config, backbone):
            magnitude = {"m.weight": (shape[1], 1)} if use_dora else {}
            require_leaves(values, {"lora_A": (rank, shape[0]), "lora_B": (shape[1], rank)} | magnitude, module)
            addresses.append(address)
            if use_dora:
                tensors |= _dora(module, values, scale, plain, backbone)
                continue
            prefix = f"{part}." if part else ""
            tensors |= {delta_key(backbone.real(module), f"{prefix}{leaf}"): value for leaf, value in values.items()}
    return {**options, "modified_modules": addresses}, tensors


def _dora(
    module: str, leaves: Mapping[str, Tensor], scale: float, plain: Mapping[str, Tensor], backbone: Backbone
) -> dict[str, Tensor]:
    """Convert the DoRA of a layer; the tensors have their names in a delta.

    Args:
        plain: the backbone's own values, by name.

    Raises:
        ConfigError: the values of the layer are not at hand, or not plain.
    """
    layer, real = backbone.modules[module], backbone.real(module)
    if (coded := quantised(layer)) is not None:
        plain = {**plain, f"{real}.weight": coded.values()}
    if fault := weight_fault(layer):
        raise unsupported("lora", "use_dora", True, f"the weight of {real} is needed, and {fault}")
    update = leaves["lora_B"] @ leaves["lora_A"]
    own = {
        name: plain[f"{real}.{name}"].detach().cpu().to(update.dtype)
        for name in ("weight", "bias")
        if f"{real}.{name}" in plain
    }
    weight = own["weight"].T if is_conv1d(layer) else own["weight"]
    norm = torch.linalg.norm(weight + update, dim=1)
    factor = leaves["m.weight"].flatten() / norm
    magnitude = factor * torch.linalg.norm(weight + scale * update, dim=1)
    tensors = {
        delta_key(real, "lora_A"): leaves["lora_A"],
        delta_key(real, "lora_B"): leaves["lora_B"],
        delta_key(real, "lora_magnitude_vector"): magnitude,
    }
    return tensors | ({f"{real}.bias": own["bias"] * factor} if "bias" in own else {})


def _updates(
    module: str, leaves: Mapping[str, Tensor], rank: int, config: Mapping[str, Any], backbone: Backbone
) -> Iterator[tuple[str, str, tuple[int, int], Mapping[str, Tensor]]]:
    """Yield each update of a layer: its address, its part, its widths (n_in, n_out), and A and B.

    Raises:
        CheckpointError: the tensors do not fit the layer.
        ConfigError: the parts of the layer are not known.
    """
    real = backbone.real(module)
    n_in, n_out = linear_shape(real, backbone.modules[module])
    if module.rpartition(".")[2] != FUSED:
        yield real, "", (n_in, n_out), leaves
        return
    if config.get("use_dora"):
        raise unsupported("lora", "use_dora", True, f"{real} is q, k and v in one")
    wanted = [matrix for matrix in MATRICES if matrix in config.get("attn_matrices", ())]
    count, width = len(wanted), n_out // len(MATRICES)
    require_leaves(leaves, {"lora_A": (count * rank, n_in), "lora_B": (count * width, rank)}, module)
    named = {part.label: common for common, part in StructureMap.of(backbone.model).variants(real) if part}
    for index, matrix in enumerate(wanted):
        if matrix not in named:
            raise unsupported("lora", "attn_matrices", list(wanted), f"the parts of {real} are not known here")
        down = leaves["lora_A"][index * rank : (index + 1) * rank]
        up = leaves["lora_B"][index * width : (index + 1) * width]
        yield named[matrix], matrix, (n_in, width), {"lora_A": down.contiguous(), "lora_B": up.contiguous()}


def _ia3(leaves: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any], backbone: Backbone) -> Converted:
    """Convert the vectors of an IA3, all of which scale outputs."""
    tensors: dict[str, Tensor] = {}
    for module, own in leaves.items():
        real = backbone.real(module)
        if module.rpartition(".")[2] == FUSED:
            raise unsupported("lora", "composition_mode", "scale", f"{real} is q, k and v in one")
        _, n_out = linear_shape(real, backbone.modules[module])
        require_leaves(own, {"lora_B": (n_out, 1)}, module)
        tensors[delta_key(real, "ia3_l")] = own["lora_B"].flatten()
    modules = sorted(map(backbone.real, leaves))
    return {"delta_type": "ia3", "feedforward_modules": [], "modified_modules": modules}, tensors


def require_modules(config: Mapping[str, Any], found: set[str], backbone: Backbone) -> None:
    """Refuse a file with updates on other layers than its config names.

    The feed-forward layers of a flag differ between the families, so the file names them; each is in every layer.

    Raises:
        CheckpointError: a layer has no update, or one that the config does not name.
    """
    if absent := sorted(found - backbone.modules.keys()):
        msg = f"The adapter sits on {absent[0]}, which this {type(backbone.model).__name__} does not have. Load its own backbone."
        raise CheckpointError(msg)
    left_out = set(config.get("leave_out") or ())
    patterns = {NUMBER.sub("*", module, count=1) for module in found}
    attention = {pattern for pattern in patterns if matrix_of(pattern)}
    wanted = set(config.get("attn_matrices", ())) if config.get("selfattn_lora", True) else set()
    if unknown := sorted(wanted - MATRICES.keys()):
        raise unsupported("lora", "attn_matrices", sorted(wanted), f"{unknown[0]} is not q, k or v")
    if wanted:
        attention = {
            name
            for module in backbone.modules
            if matrix_of(name := NUMBER.sub("*", module, count=1)) in (*wanted, FUSED) and _is_linear(module, backbone)
        }
    flags = sum(bool(config.get(flag)) for flag in ("intermediate_lora", "output_lora"))
    feed_forward = {pattern for pattern in patterns if not matrix_of(pattern)}
    stacks = {pattern.partition(".")[0] for pattern in feed_forward}
    if len(feed_forward) != flags * max(1, len(stacks)):
        msg = f"The adapter has tensors for {len(feed_forward)} kinds of layers outside attention; its config names {flags}. Fetch it again."
        raise CheckpointError(msg)
    expected = {
        pattern.replace("*", str(layer))
        for pattern in (*(attention if wanted else ()), *feed_forward)
        for layer in backbone.layers(pattern)
        if backbone.number(pattern, layer) not in left_out
    }
    require_places(found, expected)


def matrix_of(module: str) -> str:
    """Return which matrix of an attention a layer is, by the end of its name; empty for any other layer."""
    last = module.rpartition(".")[2]
    if last == FUSED:
        return FUSED
    return next((matrix for matrix, names in MATRICES.items() if last in names), "")


def _is_linear(module: str, backbone: Backbone) -> bool:
    return getattr(backbone.modules[module], "weight", None) is not None
