"""Writer for a LoRA in GGUF, which llama.cpp loads beside its own file of the backbone (`--lora`).

The file has one alpha, and llama.cpp scales each update by alpha / rank of the tensor. Where a module of the delta has another scale, the
difference is multiplied into B. All tensors are float32.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from deltahub.checkpoint.address import rank_and_scale
from deltahub.checkpoint.checkpoint import CARD, Checkpoint
from deltahub.checkpoint.manifest import DELTA_PART
from deltahub.engine.filling import not_finite
from deltahub.engine.modules import module_at
from deltahub.engine.shapes import linear_shape
from deltahub.engine.site import is_delta_name
from deltahub.errors import CheckpointError, ConfigError
from deltahub.files.atomic import scratch
from deltahub.formats.backbone import ASK, Backbone
from deltahub.formats.delta_tensors import refuse_parameter
from deltahub.formats.gguf.architectures import EMBEDDINGS, Architecture, gguf_package
from deltahub.formats.peft.adapter import by_part
from deltahub.formats.peft.lora_export import joined
from deltahub.formats.peft.shapes import check_shapes
from deltahub.formats.writing import card

FILE: Final = "lora.gguf"
_HUB: Final = "https://huggingface.co/"
_MERGE: Final = "Write it as a merged model (merged), and convert that with llama.cpp."
_KEEP: Final = "Keep it in DeltaHub's own format (deltahub)."
_WAY_OUT: Final = "Use the format peft, or merge the delta (merged) and convert the whole model with llama.cpp."
# By the type of a delta: the ways that exist; for all others DeltaHub's own format.
_WAYS: Final = {
    "DoRA": _WAY_OUT,
    "adalora": _MERGE,
    "bitfit": _MERGE,
    "ia3": _WAY_OUT,
    "layer_norm": _WAY_OUT,
    "soft_prompt": "Use the format peft.",
    "vera": _MERGE,
    "weight_update": _MERGE,
}
Update = tuple[Tensor, Tensor, float]  # A (r, n_in), B (n_out, r), and the scale


def files(saved: Checkpoint, backbone: Backbone) -> dict[str, bytes]:
    """Return the files of a delta as a LoRA in GGUF.

    Args:
        backbone: the delta's backbone; its model is needed, with or without values.

    Raises:
        ConfigError: llama.cpp has no equivalent of the delta, the backbone is needed, or the package gguf is missing.
        CheckpointError: the delta's tensors are not those of its config, or do not fit the backbone.
    """
    shares = _shares(saved)
    if backbone.model is None:
        raise ConfigError(f"Only the backbone tells how llama.cpp names and lays out its weights. {ASK}")
    architecture = Architecture.of(backbone.model)
    weights = {module: weight for weight, module in architecture.weights.items()}
    updates: dict[str, Update] = {}
    for module, leaves in shares.items():
        if module not in weights:
            msg = f"llama.cpp has no LoRA on {module} of this {type(backbone.model).__name__}. {_WAY_OUT}"
            raise ConfigError(msg)
        architecture.refuse_tied(weights[module])
        updates[weights[module]] = _update(saved.document, module, leaves, backbone, architecture)
    alpha = _common_alpha(updates.values())
    tensors: dict[str, Tensor] = {}
    for weight, (down, up, scale) in sorted(updates.items()):
        factor = scale * len(down) / alpha
        tensors[f"{weight}.lora_a"] = (down.T if weight == EMBEDDINGS else down).float()
        tensors[f"{weight}.lora_b"] = (up if factor == 1 else up.double() * factor).float()
    if wrong := not_finite(tensors):
        raise ConfigError(f"The values do not fit into float32 after scaling: {wrong[0]}. {_WAY_OUT}")
    base = _base_model(saved, backbone)
    content = _gguf_bytes(tensors, alpha, architecture.name, _description(saved, base, backbone.class_name))
    return {FILE: content, CARD: card(saved, base, "gguf")}


def _shares(saved: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of a LoRA by module.

    Raises:
        ConfigError: the delta is something else, or more than a LoRA.
        CheckpointError: its tensors are not those of its config.
    """
    document = saved.document
    kind = "DoRA" if document.get("use_dora") else document["delta_type"]
    if kind != "lora":
        raise ConfigError(f"llama.cpp has LoRA only, and this delta is of the type {kind}. {_WAYS.get(kind, _KEEP)}")
    if document.get("use_bias"):
        raise ConfigError(f"The LoRA has biases of B, which llama.cpp does not have. {_WAY_OUT}")
    shares: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(saved.tensors.items()):
        if not is_delta_name(name):
            msg = (
                f"The delta also trained {name} of the backbone, and a LoRA of llama.cpp replaces no tensor. {_WAY_OUT}"
            )
            raise ConfigError(msg)
        module, _, leaf = f".{name}".partition(DELTA_PART)
        refuse_parameter(name, leaf, tensor)
        shares.setdefault(module.removeprefix("."), {})[leaf] = tensor
    check_shapes(document, shares)
    return shares


def _update(
    document: Mapping[str, Any],
    module: str,
    leaves: Mapping[str, Tensor],
    backbone: Backbone,
    architecture: Architecture,
) -> Update:
    """Return the update of a module, with its rows in the order of llama.cpp.

    Raises:
        CheckpointError: it does not fit the backbone.
        ConfigError: the module is something else than a linear layer or an embedding.
    """
    down, up = (leaves["lora_A"], leaves["lora_B"]) if "lora_A" in leaves else joined(module, by_part(leaves), backbone)
    assert backbone.model is not None  # `files` refused it
    layer = module_at(backbone.model, module)
    expected = linear_shape(module, layer)
    if (down.shape[1], up.shape[0]) != expected:
        msg = (
            f"The update of {module} is from {down.shape[1]} to {up.shape[0]} values, and the layer from {expected[0]} to {expected[1]}. "
            "Pass the backbone of this delta."
        )
        raise CheckpointError(msg)
    order = architecture.order(module, len(up))
    _, scale = rank_and_scale(document, module)
    return down, up if order is None else up[order], scale


def _common_alpha(updates: Iterable[Update]) -> float:
    """Return the alpha that most modules have; not 0, which llama.cpp takes for a scale of 1.

    The value is one that float32 holds, as in the file.
    """
    counts = Counter(torch.tensor(scale * len(down), dtype=torch.float32).item() for down, _, scale in updates)
    usable = [alpha for alpha, _ in counts.most_common() if alpha and math.isfinite(alpha)]
    return usable[0] if usable else 1.0


def _base_model(saved: Checkpoint, backbone: Backbone) -> str:
    document = saved.document
    recorded = document.get("metadata", {}).get("backbone_model") or document.get("backbone_checkpoint_name")
    return backbone.named or str(recorded or "")


def _description(saved: Checkpoint, base: str, class_name: str) -> dict[str, str]:
    """Return the texts of the metadata, by key: the names of the adapter and its base model, and the delta's digest.

    Args:
        base: the name or id of the base model; empty if unknown.
        class_name: its class.
    """
    organization, _, base_name = base.rpartition("/")
    is_id = bool(organization) and "/" not in organization and not organization.startswith((".", "~"))
    texts = {
        "general.name": saved.parent.get("name") or f"LoRA of {base_name or class_name}",
        "general.base_model.0.name": base_name,
        "general.base_model.0.organization": organization if is_id else "",
        "general.base_model.0.repo_url": f"{_HUB}{base}" if is_id else "",
        "general.license": str(saved.document.get("metadata", {}).get("license") or ""),
        "deltahub.delta.digest": saved.parent.get("digest", ""),
    }
    return {key: text for key, text in texts.items() if text}


def _gguf_bytes(tensors: Mapping[str, Tensor], alpha: float, architecture: str, texts: Mapping[str, str]) -> bytes:
    """Return a file in GGUF.

    Args:
        tensors: by name, in float32.
        texts: the metadata beyond that of every adapter.
    """
    gguf = gguf_package()
    with scratch() as folder:
        writer = gguf.GGUFWriter(folder / FILE, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        if "general.base_model.0.name" in texts:
            writer.add_base_model_count(1)
        for key, text in texts.items():
            writer.add_string(key, text)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.detach().cpu().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (folder / FILE).read_bytes()
